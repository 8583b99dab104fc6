"""The real builder, without a GPU: what it builds, and the one line for each graph that it refuses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("tensorrt_rtx", reason="needs pip install 'edgeglm[tensorrt]'")
pytest.importorskip("onnx")

from onnx.helper import make_node

from edgeglm.errors import DamagedFileError, EdgeglmError, UnsupportedError
from edgeglm.runtimes.engines.tensorrt.builder import Range, Task, build, configure
from edgeglm.runtimes.engines.tensorrt.library import load_library, new_log
from tests.runtimes.engines.tensorrt.graphs import HALF, SINGLE, graph, matmul

RANGES: dict[str, Range] = {"x": ((1, 8), (16, 8), (32, 8))}
FOUR: list[int | str] = [4, 4]
WEIGHT = np.zeros((4, 4), np.uint8)


def attempt(folder: Path, model: bytes, ranges: dict[str, Range] | None = None) -> tuple[Path, list[float]]:
    """The engine, and the progress that was shown."""
    (folder / "model.onnx").write_bytes(model)
    engine, shown = folder / "engine.plan", list[float]()
    build(
        Task("tensorrt_rtx", str(folder / "model.onnx"), 86, ranges or {}, str(engine)),
        load_library(["tensorrt_rtx"]),
        shown.append,
    )
    return engine, shown


def test_a_graph_becomes_an_engine_and_shows_its_progress(tmp_path: Path) -> None:
    engine, shown = attempt(tmp_path, matmul(), RANGES)
    assert engine.stat().st_size > 1000
    assert shown
    assert all(0 <= done <= 1 for done in shown)
    assert max(shown) > 0.7


@pytest.mark.parametrize("sparse", [False, True])
def test_the_builder_is_told_that_it_may_skip_zeros(sparse: bool, tmp_path: Path) -> None:
    library = load_library(["tensorrt_rtx"])
    trt, builder = library.module, library.module.Builder(new_log(library))
    config = configure(Task(library.name, "", 86, {}, "", sparse), library, builder, builder.create_network(0))
    assert config.get_flag(trt.BuilderFlag.SPARSE_WEIGHTS) is sparse


MIXED = graph(
    [make_node("Add", ["x", "b"], ["y"], name="sum")], [("x", HALF, FOUR), ("b", SINGLE, FOUR)], [("y", SINGLE, FOUR)]
)
UNKNOWN = graph(
    [make_node("QuickGelu", ["x"], ["y"], name="gelu", domain="com.microsoft")],
    [("x", HALF, FOUR)],
    [("y", HALF, FOUR)],
)
UNSIGNED = graph(
    [
        make_node("DequantizeLinear", ["w", "s", "z"], ["d"], name="weight", axis=1),
        make_node("MatMul", ["x", "d"], ["y"], name="product"),
    ],
    [("x", HALF, FOUR)],
    [("y", HALF, FOUR)],
    w=WEIGHT,
    s=np.ones(4, np.float16),
    z=np.zeros(4, np.uint8),
)
SHAPES = graph(
    [make_node("MatMul", ["x", "b"], ["y"], name="product")],
    [("x", HALF, [4, 3]), ("b", HALF, FOUR)],
    [("y", HALF, FOUR)],
)


@pytest.mark.parametrize(
    ("model", "where", "why"),
    [
        pytest.param(MIXED, "node sum (Add)", "ElementWiseOperation SUM must have same input types", id="mixed types"),
        pytest.param(UNKNOWN, "node gelu (QuickGelu)", "it does not have the operator QuickGelu", id="operator"),
        pytest.param(UNSIGNED, "node weight (DequantizeLinear)", "unsupported input type of UINT8", id="unsigned"),
        pytest.param(SHAPES, "node product (MatMul)", "last dimension of input0 = 3", id="shapes"),
    ],
)
def test_a_refused_node_is_named_with_its_operator_and_the_reason(
    model: bytes, where: str, why: str, tmp_path: Path
) -> None:
    with pytest.raises(UnsupportedError) as raised:
        attempt(tmp_path, model)
    check(raised.value, where, why)
    assert "cudaError" not in str(raised.value)
    assert not (tmp_path / "engine.plan").exists()


@pytest.mark.parametrize(
    ("ranges", "why"),
    [
        pytest.param({}, "its input x has the shape (-1, 8), and no range for what varies in it", id="none"),
        pytest.param({"x": ((4, 8), (2, 8), (1, 8))}, "refuses the ranges {'x': ((4, 8), (2, 8), (1, 8))}", id="wrong"),
        pytest.param({"x": ((1, 9), (2, 9), (4, 9))}, "Dimension mismatch for tensor x and profile 0", id="other"),
    ],
)
def test_a_missing_or_wrong_range_is_said(ranges: dict[str, Range], why: str, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError) as raised:
        attempt(tmp_path, matmul(), ranges)
    check(raised.value, "model.onnx", why)


@pytest.mark.parametrize(
    ("model", "why"),
    [
        pytest.param(b"no graph at all", "cannot read it: Failed to parse the ONNX model", id="garbage"),
        pytest.param(b"", "is an empty graph", id="empty"),
    ],
)
def test_what_is_no_graph_is_damaged(model: bytes, why: str, tmp_path: Path) -> None:
    with pytest.raises(DamagedFileError) as raised:
        attempt(tmp_path, model)
    check(raised.value, "model.onnx", why)


def check(error: EdgeglmError, where: str, why: str) -> None:
    assert error.what.endswith(where)
    assert why in error.why
    assert "\n" not in str(error)
