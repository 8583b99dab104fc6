"""What the manifest says of a graph's error: on samples of its own, in the arithmetic of the target, null, a limit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

pytest.importorskip("onnxscript")

from edgeglm.bundle import read_sealed
from edgeglm.errors import AccuracyError, UsageError
from edgeglm.export.api import ExportRequest, ExportResult, export
from edgeglm.export.foreign.error import calibrating
from edgeglm.export.foreign.fp16.half_nodes import GOAL, make_half
from edgeglm.export.foreign.normalize.tidy import load_model
from edgeglm.manifest import GraphAccuracy, GraphManifest
from tests.export.foreign.small_graphs import normal

RANDOM = np.random.default_rng(0)
SINGLE, WHOLE = TensorProto.FLOAT, TensorProto.INT64


def write(folder: Path, nodes: list[onnx.NodeProto], shapes: dict[str, list[int]], **weights: np.ndarray) -> Path:
    """A graph from ``x`` to ``y``, which is whole numbers where an ArgMax makes it."""
    kind = WHOLE if nodes[-1].op_type == "ArgMax" else SINGLE
    x, y = (
        helper.make_tensor_value_info("x", SINGLE, shapes["x"]),
        helper.make_tensor_value_info("y", kind, shapes["y"]),
    )
    arrays = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(helper.make_graph(nodes, "g", [x], [y], arrays), opset_imports=opset, ir_version=8),
              folder / "model.onnx")  # fmt: skip
    return folder / "model.onnx"


def write_samples(folder: Path, arrays: list[np.ndarray]) -> Path:
    (folder / "samples").mkdir()
    for index, array in enumerate(arrays):
        np.savez(folder / f"samples/{index}.npz", x=array.astype(np.float32))
    return folder / "samples"


def exported(graph: Path, samples: Path | None, precision: str = "int8", **options: object) -> ExportResult:
    target = str(options.pop("target", "cpu"))
    return export(
        ExportRequest(
            model=str(graph), target=target, precision=precision, calibration=samples,
            output=graph.parent / "bundle", **options,  # type: ignore[arg-type]
        )
    )  # fmt: skip


def accuracy(folder: Path) -> tuple[float | None, GraphAccuracy]:
    manifest = read_sealed(folder / "bundle")
    assert isinstance(manifest, GraphManifest)
    assert manifest.accuracy
    return manifest.modules[0].max_relative_error, manifest.accuracy


def linear(folder: Path) -> Path:
    weight = (RANDOM.standard_normal((32, 8)) * 0.2).astype(np.float32)
    return write(folder, [helper.make_node("MatMul", ["x", "w"], ["y"])], {"x": [4, 32], "y": [4, 8]}, w=weight)


@pytest.mark.parametrize(("count", "measured", "unseen"), [(3, 3, False), (8, 2, True)])
def test_the_error_is_of_samples_that_calibrated_nothing(
    count: int, measured: int, unseen: bool, tmp_path: Path
) -> None:
    samples = write_samples(tmp_path, [RANDOM.standard_normal((4, 32)) for _ in range(count)])
    notes = exported(linear(tmp_path), samples).notes
    error, found = accuracy(tmp_path)
    assert count - len(calibrating(count)) == (measured if unseen else 0)
    assert (found.samples, found.unseen) == (measured, unseen)
    assert found.outputs == {"y": error}
    assert any("too few samples" in note for note in notes) is not unseen


def test_a_graph_without_values_to_compare_has_no_error(tmp_path: Path) -> None:
    nodes = [helper.make_node("Slice", ["x", "first", "last"], ["y"])]
    graph = write(tmp_path, nodes, {"x": [4, 32], "y": [0, 32]}, first=np.array([0]), last=np.array([0]))
    notes = exported(graph, None, "fp32").notes
    assert accuracy(tmp_path) == (None, GraphAccuracy(4, True, {"y": None}))
    assert any("the error was not measured" in note for note in notes)


def test_a_limit_of_the_users_fails_the_export(tmp_path: Path) -> None:
    samples = write_samples(tmp_path, [RANDOM.standard_normal((4, 32)) for _ in range(4)])
    with pytest.raises(AccuracyError, match=r"its output y is 0.*relative to it.*; use a higher precision than fp16"):
        exported(linear(tmp_path), samples, "fp16", max_error=1e-7)
    refused = r"its output y is 0.*relative to it|any of its weights takes an output further than 1e-06"
    with pytest.raises(AccuracyError, match=refused):  # by the samples, one weight in INT8 helps the others or none
        exported(linear(tmp_path), samples, max_error=1e-6)
    assert not (tmp_path / "bundle").exists()
    with pytest.raises(UsageError, match="--max-error: is only for ONNX graphs"):
        export(ExportRequest(target="cpu", max_error=0.1))


def test_fp16_of_a_gpu_is_measured_with_its_roundings(tmp_path: Path) -> None:
    """A sum of 65,504 and more overflows there, and not on a CPU, which computes fp16 in fp32."""
    weight = np.full((32, 8), 1.0, np.float32)
    nodes = [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("Mul", ["h", "less"], ["y"])]
    graph = write(tmp_path, nodes, {"x": [4, 32], "y": [4, 8]}, w=weight, less=np.array(1e-4, np.float32))
    samples = write_samples(tmp_path, [np.full((4, 32), 4096.0)])
    assert not exported(graph, samples, "fp16").notes
    (note,) = [note for note in exported(graph, samples, "fp16", target="jetson").notes if "fp32" in note]
    assert note.startswith("computed in fp32: ")
    assert "(MatMul)" in note
    error, _ = accuracy(tmp_path)
    assert error is not None
    assert error < 1e-3


def test_roundings_around_a_recurrent_layer_are_measured(tmp_path: Path) -> None:
    """The engine's layouts end the process there: casts between a transpose and what follows it."""
    nodes = [
        helper.make_node("Transpose", ["x"], ["t"], perm=[1, 0, 2]),
        helper.make_node("GRU", ["t", "w", "u", "b"], ["a"], hidden_size=8, linear_before_reset=1),
        helper.make_node("Squeeze", ["a", "one"], ["s"]),
        helper.make_node("Transpose", ["s"], ["z"], perm=[1, 0, 2]),
        helper.make_node("MatMul", ["z", "m"], ["p"]),
        helper.make_node("Sigmoid", ["p"], ["y"]),
    ]
    weights = {
        "w": normal(1, 24, 8, scale=0.3),
        "u": normal(1, 24, 8, scale=0.3),
        "b": normal(1, 48),
        "m": normal(8, 3),
    }
    graph = write(tmp_path, nodes, {"x": [1, 6, 8], "y": [1, 6, 3]}, **weights, one=np.array([1]))
    exported(graph, write_samples(tmp_path, [normal(1, 6, 8)]), "fp16", target="jetson")
    error, _ = accuracy(tmp_path)
    assert error is not None
    assert error < 0.01


def test_roundings_in_a_body_are_measured_too(tmp_path: Path) -> None:
    """A sum that overflows in the body of a loop is kept in fp32 there."""
    kinds = {"i": ([], TensorProto.INT64), "c": ([], TensorProto.BOOL), "s": ([4, 8], TensorProto.FLOAT)}
    inputs = [helper.make_tensor_value_info(name, kind, shape) for name, (shape, kind) in kinds.items()]
    results = [
        helper.make_tensor_value_info(f"{name}_out", kinds[name][1], kinds[name][0]) for name in ("c", "s")
    ]  # fmt: skip
    steps = [
        helper.make_node("Identity", ["c"], ["c_out"]),
        helper.make_node("MatMul", ["s", "w"], ["h"]),
        helper.make_node("Mul", ["h", "less"], ["s_out"]),
    ]
    body = helper.make_graph(steps, "body", inputs, results)
    nodes = [helper.make_node("Loop", ["n", "", "x"], ["y"], body=body)]
    less = np.array(1 / 8, np.float32)
    graph = write(tmp_path, nodes, {"x": [4, 8], "y": [4, 8]}, w=np.ones((8, 8), np.float32), less=less, n=np.array(2))
    ir.save(load_model(onnx.load(graph), {"x": (4, 8)}), tmp_path / "tidy.onnx")
    samples = write_samples(tmp_path, [np.full((4, 8), 12000.0)])
    made = make_half(tmp_path / "tidy.onnx", graph, samples, tmp_path / "half.onnx", 0.5)
    assert [name.partition(" ")[2] for name in made.wide] == ["(MatMul)", "(Mul)"]


def test_a_norm_of_small_operators_stays_in_fp32(tmp_path: Path) -> None:
    """The squares of one large channel overflow; those of others on other inputs may."""
    weight = (RANDOM.standard_normal((16, 64)) / 4).astype(np.float32)
    weight[:, 0] *= 3000
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("ReduceMean", ["h"], ["mean"], axes=[-1]),
        helper.make_node("Sub", ["h", "mean"], ["d"]),
        helper.make_node("Mul", ["d", "d"], ["square"]),
        helper.make_node("ReduceMean", ["square"], ["variance"], axes=[-1]),
        helper.make_node("Add", ["variance", "epsilon"], ["v"]),
        helper.make_node("Sqrt", ["v"], ["root"]),
        helper.make_node("Div", ["d", "root"], ["y"]),
    ]
    for size in (1.0, 1e-4):  # too large on these samples, or not
        folder = tmp_path / f"{size}"
        folder.mkdir()
        epsilon = np.array(1e-12, np.float32)
        graph = write(folder, nodes, {"x": [8, 16], "y": [8, 64]}, w=weight * size, epsilon=epsilon)
        exported(graph, write_samples(folder, [RANDOM.standard_normal((8, 16))] * 2), "fp16", target="jetson")
        manifest = read_sealed(folder / "bundle")
        kept = " ".join(manifest.modules[0].fp32_values)
        assert all(f"({name})" in kept for name in ("Sub", "Mul", "ReduceMean", "Add", "Sqrt", "Div"))
        assert (manifest.modules[0].max_relative_error or 0) < 4 * GOAL  # with the norm in fp16 it is 1
