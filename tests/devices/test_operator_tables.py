"""The shipped operator tables against the engines that are installed: each engine is asked for what it has."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

from edgeglm.devices.operator_table import Table, operator_table

onnx = pytest.importorskip("onnx")

ROOT = Path(__file__).parents[2]
OPEN = 1 << 30  # a kernel that has no last opset


def shipped(engine: str, version: str) -> Table:
    table = operator_table(engine, version)
    assert table is not None
    assert table.version == version
    return table


def history(newest: int) -> dict[str, list[int]]:
    """The versions of every ONNX operator up to an opset."""
    found = defaultdict(list)
    for schema in onnx.defs.get_all_schemas_with_history():
        if schema.domain == "ai.onnx.ml" or (not schema.domain and schema.since_version <= newest):
            found[".".join(filter(None, (schema.domain, schema.name)))].append(schema.since_version)
    return {name: sorted(versions) for name, versions in found.items()}


def kernels() -> dict[str, list[tuple[int, int]]]:
    """The opsets of ONNX Runtime's kernels for the CPU, by the operators' names in a table."""
    state = pytest.importorskip("onnxruntime.capi.onnxruntime_pybind11_state")
    found = defaultdict(list)
    for kernel in state.get_all_opkernel_def():
        if kernel.provider == "CPUExecutionProvider" and kernel.domain in ("", "ai.onnx.ml", "com.microsoft"):
            found[".".join(filter(None, (kernel.domain, kernel.op_name)))].append(tuple(kernel.version_range))
    return found


def test_onnx_runtime_has_the_kernels_of_its_table() -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    table, found = shipped("ort", "1.31"), kernels()
    if not onnxruntime.__version__.startswith(table.version):
        pytest.skip(f"the table is of {table.version}, and onnxruntime is {onnxruntime.__version__}")
    assert table.opset is not None
    versions = history(table.opset.value[1])
    expected = {}
    for name, ranges in found.items():
        known = [v for v in versions.get(name, [1]) if any(a == v if b > OPEN else a <= v <= b for a, b in ranges)]
        if known and not name.startswith("Memcpy"):
            expected[name] = (known[0], known[-1])
    listed = {name: operator.versions for name, operator in table.operators.items() if operator.source == "kernels"}
    assert listed == expected


def test_what_has_no_kernel_is_a_function_of_what_has_one() -> None:
    table = shipped("ort", "1.31")
    for name, operator in table.operators.items():
        if operator.source == "functions" and name != "Constant":
            assert operator.versions is not None
            schema = onnx.defs.get_schema(name, operator.versions[1])
            assert schema.has_function or schema.has_context_dependent_function, name


def test_onnx_runtime_reads_the_opsets_of_its_table() -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    table = shipped("ort", "1.31")
    if not onnxruntime.__version__.startswith(table.version):
        pytest.skip(f"the table is of {table.version}, and onnxruntime is {onnxruntime.__version__}")
    assert table.opset is not None
    newest = table.opset.value[1]
    onnxruntime.InferenceSession(relu(newest))
    with pytest.raises(Exception, match="opset"):
        onnxruntime.InferenceSession(relu(newest + 1))


def relu(opset: int) -> bytes:
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    x, y = (helper.make_tensor_value_info(name, kind, [1]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "relu", [x], [y])
    data: bytes = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10
    ).SerializeToString()
    return data


def test_tensorrt_for_rtx_has_the_operators_of_the_newest_table() -> None:
    trt = pytest.importorskip("tensorrt_rtx", reason="pip install 'edgeglm[tensorrt]'")
    log = trt.Logger(trt.Logger.INTERNAL_ERROR)
    parser = trt.OnnxParser(trt.Builder(log).create_network(0), log)
    table = shipped("tensorrt", "10.16")
    # A plug-in of TensorRT's, which TensorRT for RTX comes without.
    assert {name for name in table.operators if not parser.supports_operator(name)} == {"DeformConv"}
    # What it has beyond the table is newer than the table, or a detail that the table's document leaves out.
    assert {
        name for name in history(24) if "." not in name and parser.supports_operator(name)
    } - table.operators.keys() == {"Swish"}


def test_litert_has_the_builtins_of_its_table_and_its_quantizer_the_policy() -> None:
    schema = pytest.importorskip("ai_edge_litert.schema_py_generated", reason="pip install 'edgeglm[tflite]'")
    policy = pytest.importorskip("ai_edge_quantizer.default_policy", reason="pip install 'edgeglm[tflite]'")
    table = shipped("litert", "2.3")
    builtins = {name for name in vars(schema.BuiltinOperator) if name.isupper()}
    assert table.operators.keys() == builtins - {"CUSTOM", "PLACEHOLDER_FOR_GREATER_OP_CODES"}
    static = set(json.loads(policy.DEFAULT_JSON_POLICY)["ops_per_config"]["static_wi8_ai8"])
    integer = {name for name, operator in table.operators.items() if operator.source == "int8"}
    assert integer == static & table.operators.keys()


@pytest.mark.slow
@pytest.mark.parametrize(("version", "soc_model"), [("v68", 93)])
def test_qnn_compiles_what_its_table_says_it_compiles(version: str, soc_model: int) -> None:
    pytest.importorskip("onnxruntime_qnn", reason="pip install 'edgeglm[qnn]'")
    table = shipped("qnn", version)
    names = [name for name, operator in table.operators.items() if operator.source == "compiled"]
    # Its own process: the compiler may abort. What it refuses is asked for too, so that the question can be wrong.
    command = [sys.executable, "-m", "tests.devices.qnn_compile", version.removeprefix("v"), str(soc_model)]
    done = subprocess.run(
        [*command, *names, "Erf", "RotaryEmbedding"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    # Whatever else the vendor's libraries print.
    found = [line.removeprefix("compiles ") for line in done.stdout.splitlines() if line.startswith("compiles ")]
    assert sorted(found) == sorted(names)
