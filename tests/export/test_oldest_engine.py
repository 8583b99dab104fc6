"""Every node of the demo's bundles has a kernel in the oldest ONNX Runtime that is supported, on its CPU.

What that version has is in tests/devices/ort-1.23.2.json, which tests/devices/ort_kernels.py printed there.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")

from onnx import TensorProto, helper

from tests.runtimes.demo import demo_bundle

ROOT = Path(__file__).parents[2]
TABLE = ROOT / "tests/devices/ort-1.23.2.json"
KERNELS: dict[str, Any] = json.loads(TABLE.read_text())["operators"]
NEWEST = max(int(version) for name, versions in KERNELS.items() if name[0] == ":" for version in versions)


def name_of(kind: int) -> str:
    return str(TensorProto.DataType.Name(kind)).lower()


def types_of(graph: Any) -> dict[str, str]:  # noqa: ANN401 (onnx types no protobuf)
    """The types of all values of a graph."""
    values = [*graph.value_info, *graph.input, *graph.output]
    types = {value.name: name_of(value.type.tensor_type.elem_type) for value in values}
    return types | {tensor.name: name_of(tensor.data_type) for tensor in graph.initializer}


def takes(kernel: dict[str, str], types: list[tuple[str, str]]) -> bool:
    """Whether a kernel takes all values; what it lacks for half precision, the engine computes in fp32."""
    return any(
        all(formal == (given := cast.get(actual, actual)) or given in kernel.get(formal, given).split()
            for formal, actual in types)
        for cast in ({}, {"float16": "float"})
    )  # fmt: skip


def refused(path: Path) -> list[str]:
    """The nodes of a graph that the oldest engine has no kernel for."""
    model = onnx.load(path, load_external_data=False)
    model = onnx.shape_inference.infer_shapes(model)  # where the writer left a type out
    opsets = {opset.domain: opset.version for opset in model.opset_import}
    assert opsets[""] <= NEWEST
    types, wrong = types_of(model.graph), []
    for node in model.graph.node:
        if node.op_type == "Constant":  # which is a weight to the engine
            continue
        versions = KERNELS.get(f"{node.domain}:{node.op_type}", {})
        version = max((int(version) for version in versions if int(version) <= opsets[node.domain]), default=0)
        found = versions.get(str(version), {"inputs": ["?"], "outputs": ["?"], "kernels": []})
        sides = ((node.input, found["inputs"]), (node.output, found["outputs"]))
        bound = [
            (formals[min(index, len(formals) - 1)], types[value])  # the last one may come many times
            for values, formals in sides
            for index, value in enumerate(values)
            if value
        ]
        if not any(takes(kernel, bound) for kernel in found["kernels"]):
            wrong.append(f"{node.name}: {node.domain}:{node.op_type} {version} {bound}")
    return wrong


@pytest.mark.parametrize(
    ("target", "precision"),
    [("cpu", "fp32"), ("cpu", "int8"), ("cpu", "int4"), ("jetson", "fp32"), ("jetson", "auto"), ("jetson", "int4")],
)
def test_every_node_of_a_bundle_has_a_kernel(target: str, precision: str, tmp_path: Path) -> None:
    bundle = demo_bundle(tmp_path / "bundle", target, precision)
    graphs = sorted(bundle.rglob("*.onnx"))
    assert {graph.parent.name for graph in graphs} == {"vision", "decoder"}
    assert ("slots.onnx" in {graph.name for graph in graphs}) == (target == "cpu")
    assert {f"{graph.relative_to(bundle)}": refused(graph) for graph in graphs} == {
        f"{graph.relative_to(bundle)}": [] for graph in graphs
    }


@pytest.mark.parametrize(("domain", "has_kernel"), [("", False), ("com.microsoft", True)])
def test_a_node_without_one_is_found(domain: str, has_kernel: bool, tmp_path: Path) -> None:
    """QuantizeLinear of opset 23: its kernels there take no scale of any type; once a bundle was shipped with it."""
    scale = helper.make_tensor("scale", TensorProto.FLOAT, [], [0.5])
    zero = helper.make_tensor("zero", TensorProto.UINT8, [], [0])
    node = helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["y"], "quantize", domain=domain)
    x, y = (helper.make_tensor_value_info(*info, [2]) for info in (("x", TensorProto.FLOAT), ("y", TensorProto.UINT8)))
    graph = helper.make_graph([node], "graph", [x], [y], [scale, zero])
    opsets = [helper.make_opsetid("", 23), helper.make_opsetid("com.microsoft", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets), tmp_path / "model.onnx")
    assert (refused(tmp_path / "model.onnx") == []) is has_kernel


def test_the_table_is_of_the_oldest_version_that_is_supported() -> None:
    (oldest,) = re.findall(r'"onnxruntime>=([\d.]+)"', (ROOT / "pyproject.toml").read_text())
    assert json.loads(TABLE.read_text())["onnxruntime"].startswith(oldest)
