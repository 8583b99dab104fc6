"""Small graphs as exporters, converters and people write them, one for each form, with a sample of their inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto as T
from onnx import helper, numpy_helper

from edgeglm.export.foreign.read.made import write

Arrays = dict[str, NDArray[Any]]
Weights = dict[str, NDArray[Any] | np.generic]
Shape = Sequence[int | str] | None
node = helper.make_node
RANDOM = np.random.default_rng(0)


@dataclass
class Small:
    """A graph with a sample of its inputs."""

    model: onnx.ModelProto
    sample: Arrays
    error: float = 4e-3  # in fp16, at most
    precisions: Sequence[str] = ("fp32", "fp16")


def value(name: str, shape: Shape, kind: int = T.FLOAT) -> onnx.ValueInfoProto:
    """Return an input or output."""
    return helper.make_tensor_value_info(name, kind, shape)


def normal(*shape: int, scale: float = 1.0) -> NDArray[np.float32]:
    """Return normal numbers."""
    return (RANDOM.standard_normal(shape) * scale).astype(np.float32)


def graph(
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[onnx.ValueInfoProto],
    outputs: Sequence[onnx.ValueInfoProto],
    weights: Mapping[str, NDArray[Any] | np.generic] | None = None,
    *,
    opset: int = 17,
    ir: int = 8,
    domains: Sequence[str] = (),
) -> onnx.ModelProto:
    """Return a model."""
    tensors = [numpy_helper.from_array(np.asarray(array), name) for name, array in (weights or {}).items()]
    opsets = [helper.make_opsetid("", opset), *(helper.make_opsetid(domain, 1) for domain in domains)]
    made = helper.make_graph(nodes, "g", inputs, outputs, tensors)
    model: onnx.ModelProto = helper.make_model(made, opset_imports=opsets, ir_version=ir)
    return model


def branches() -> onnx.ModelProto:
    """Return a graph of two products, of which an input chooses one."""
    then, other = (
        helper.make_graph([node("MatMul", ["x", name], [f"{name}y"])], name, [], [value(f"{name}y", [1, 32])])
        for name in ("w", "v")
    )
    nodes = [node("If", ["c"], ["y"], then_branch=then, else_branch=other)]
    inputs = [value("x", [1, 32]), value("c", [], T.BOOL)]
    return graph(nodes, inputs, [value("y", [1, 32])], {"w": normal(32, 32), "v": normal(32, 32)})


X, Y = [value("x", [2, 8])], [value("y", [2, 8])]
FEED = {"x": normal(2, 8)}


def plain(*nodes: onnx.NodeProto, **weights: NDArray[Any] | np.generic) -> onnx.ModelProto:
    """Return a graph of x (2, 8) to y."""
    return graph(nodes, X, [onnx.ValueInfoProto(name="y", type=onnx.TypeProto())], weights)


def _types() -> dict[str, Small]:
    kinds = (T.DOUBLE, T.FLOAT16, T.INT8, T.INT16, T.INT32, T.INT64, T.UINT8, T.UINT16, T.UINT32, T.UINT64, T.BOOL)
    found = {}
    for kind in kinds:
        name = T.DataType.Name(kind).lower()
        dtype = helper.tensor_dtype_to_np_dtype(kind)
        to = graph([node("Cast", ["x"], ["y"], to=kind)], X, [value("y", [2, 8], kind)])
        found[f"to_{name}"] = Small(to, {"x": np.abs(normal(2, 8)) * 50})
        numbers = (np.arange(16).reshape(2, 8) % 2 if kind == T.BOOL else np.arange(16).reshape(2, 8)).astype(dtype)
        back = graph([node("Cast", ["x"], ["y"], to=T.FLOAT)], [value("x", [2, 8], kind)], Y)
        found[f"from_{name}"] = Small(back, {"x": numbers})
    return found


def _constants() -> dict[str, Small]:
    forms: dict[str, tuple[dict[str, Any], str]] = {
        "value_float": ({"value_float": 2.5}, "Mul"),
        "value_floats": ({"value_floats": [0.5] * 8}, "Mul"),
        "value": ({"value": numpy_helper.from_array(normal(8))}, "Add"),
    }
    found = {
        name: Small(plain(node("Constant", [], ["c"], **form), node(operator, ["x", "c"], ["y"])), FEED)
        for name, (form, operator) in forms.items()
    }
    shapes: dict[str, dict[str, Any]] = {"value_int": {"value_int": 16}, "value_ints": {"value_ints": [4, 4]}}
    for name, form in shapes.items():
        nodes = [node("Constant", [], ["s"], **form)]
        nodes += [node("Reshape", ["s", "one"], ["t"]), node("Reshape", ["x", "t"], ["y"])]
        found[name] = Small(plain(*nodes, one=np.array([-1])), FEED)
    sparse = helper.make_sparse_tensor(
        numpy_helper.from_array(np.array([1.5, 2], np.float32), "v"),
        numpy_helper.from_array(np.array([0, 3]), "i"),
        [8],
    )
    nodes = [node("Constant", [], ["c"], sparse_value=sparse), node("Add", ["x", "c"], ["y"])]
    found["sparse_value"] = Small(plain(*nodes), FEED)
    model = plain(node("Add", ["x", "c"], ["y"]))
    named = onnx.SparseTensorProto()
    named.CopyFrom(sparse)
    named.values.name = "c"
    model.graph.sparse_initializer.append(named)
    found["sparse_initializer"] = Small(model, FEED)
    nodes = [node("Constant", [], ["c"], value_string="a"), node("Identity", ["c"], ["unused"])]
    found["value_string"] = Small(plain(*nodes, node("Relu", ["x"], ["y"])), FEED)
    return found


def _wiring() -> dict[str, Small]:
    relu, w = node("Relu", ["x"], ["y"]), normal(8, 4, scale=0.3)
    through = graph([relu], X, [*Y, value("x", [2, 8])])
    constant = graph([relu], X, [*Y, value("w", [8, 4])], {"w": w})
    twice = graph([relu], X, [*Y, *Y])
    first = graph(
        [node("MatMul", ["x", "w"], ["y"])],
        [value("w", [8, 4]), value("x", ["n", 8])],
        [value("y", ["n", 4])],
        {"w": w},
        opset=8,
        ir=3,
    )
    scalar = graph([node("Mul", ["x", "s"], ["y"])], [*X, value("s", [])], Y)
    wrong = graph([node("MatMul", ["x", "w"], ["y"])], X, [value("y", ["n"])], {"w": w})
    middle = graph([node("MatMul", ["x", "w"], ["z"]), node("Relu", ["z"], ["y"])], X, [value("y", [2, 4])], {"w": w})
    middle.graph.value_info.append(value("z", [7]))
    size = graph([node("MatMul", ["x", "w"], ["y"])], X, [value("y", [2, 5])], {"w": w})
    negative = graph([node("MatMul", ["x", "w"], ["y"])], [value("x", [-1, 8])], [value("y", [-1, 4])], {"w": w})
    zero = graph([node("MatMul", ["x", "w"], ["y"])], [value("x", [0, 8])], [value("y", [0, 4])], {"w": w})
    unknown = graph([relu], [value("x", None)], [value("y", None)])
    domain = graph([node("Relu", ["x"], ["y"], domain="ai.onnx")], X, Y)
    domain.opset_import[0].domain = "ai.onnx"
    nothing = graph([node("Identity", ["x"], ["y"])], X, Y)
    empty = graph([], X, [value("x", [2, 8])])
    return {
        "input_is_output": Small(through, FEED),
        "initializer_is_output": Small(constant, FEED),
        "output_twice": Small(twice, FEED),
        "weights_first": Small(first, FEED),
        "scalar_input": Small(scalar, {**FEED, "s": np.array(0.3, np.float32)}),
        "wrong_rank": Small(wrong, FEED),
        "wrong_rank_inside": Small(middle, FEED),
        "wrong_size": Small(size, FEED),
        "negative_size": Small(negative, FEED),
        "zero_size": Small(zero, FEED),
        "no_shape": Small(unknown, FEED),
        "named_domain": Small(domain, FEED),
        "identity": Small(nothing, FEED),
        "no_nodes": Small(empty, FEED),
        "not_finite": Small(
            plain(node("Where", ["m", "x", "low"], ["y"]), m=np.array([[True, False] * 4]), low=np.float32(-np.inf)),
            FEED,
        ),
    }


def _shared() -> dict[str, Small]:
    up = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    resizes = [node("Resize", ["x", "", "scales"], ["u"], **up), node("Resize", ["u", "", "scales"], ["y"], **up)]
    image = [value("x", [1, 4, 8, 8])]
    resize = graph(resizes, image, Y4, {"scales": np.array([1, 1, 2, 2], np.float32)})
    both = {"g": np.ones(8, np.float32) * 1.5, "b": np.full(8, 0.1, np.float32)}
    norms = [node("LayerNormalization", ["x", "g", "b"], ["a"]), node("Mul", ["a", "g"], ["c"])]
    found = {
        "resizes": Small(resize, {"x": normal(1, 4, 8, 8)}),
        "norms": Small(plain(*norms, node("LayerNormalization", ["c", "g", "b"], ["y"]), **both), FEED),
    }
    low = np.float32(-0.5)
    for operator in ("Max", "Min"):
        nodes = [node(operator, ["x", "c"], ["a"]), node("Add", ["a", "c"], ["b"]), node(operator, ["b", "c"], ["y"])]
        found[operator] = Small(plain(*nodes, c=low), FEED)
    nodes = [node("Clip", ["x", "c"], ["a"]), node("Mul", ["a", "c"], ["b"]), node("Clip", ["b", "c"], ["y"])]
    found["Clip"] = Small(plain(*nodes, c=low), FEED)
    nodes = [node("TopK", ["x", "k"], ["a", "i"]), node("TopK", ["a", "k"], ["y", "j"])]
    found["TopK"] = Small(plain(*nodes, k=np.array([4])), FEED)
    nodes = [node("Pad", ["x", "p", "c"], ["a"]), node("Mul", ["a", "c"], ["y"])]
    found["Pad"] = Small(plain(*nodes, p=np.array([0, 1, 0, 1]), c=low), FEED)
    gather = [node("Gather", ["w", "ids"], ["e"]), node("MatMul", ["x", "t"], ["a"]), node("Add", ["a", "e"], ["y"])]
    nodes = [node("Transpose", ["w"], ["t"]), *gather]
    found["tied"] = Small(plain(*nodes, w=normal(8, 8, scale=0.3), ids=np.array([0, 1])), FEED)
    return found


Y4 = [value("y", [1, 4, 32, 32])]


def _bodies() -> dict[str, Small]:
    def body(name: str, nodes: Sequence[onnx.NodeProto], inputs: Sequence[Any], outputs: Sequence[Any]) -> Any:  # noqa: ANN401
        return helper.make_graph(nodes, name, inputs, outputs)

    out = [value("o", [2, 8])]
    then = body("then", [node("Mul", ["x", "k"], ["o"])], [], out)
    other = body("else", [node("MatMul", ["x", "w"], ["o"])], [], [value("o", [2, 8])])
    w: Weights = {"w": normal(8, 8, scale=0.3), "k": np.float32(1.25)}
    nodes = [
        node("ReduceSum", ["x"], ["t"], keepdims=0),
        node("Greater", ["t", "k"], ["c"]),
        node("If", ["c"], ["z"], then_branch=then, else_branch=other),
        node("Relu", ["z"], ["y"]),
    ]
    found = {"if": Small(plain(*nodes, **w), FEED)}
    loop = body(
        "body",
        [
            node("MatMul", ["s", "w"], ["m"]),
            node("Tanh", ["m"], ["s_out"]),
            node("ReduceMean", ["s_out"], ["scan"], keepdims=0),
            node("Identity", ["cond"], ["cond_out"]),
        ],
        [value("i", [], T.INT64), value("cond", [], T.BOOL), value("s", [2, 8])],
        [value("cond_out", [], T.BOOL), value("s_out", [2, 8]), value("scan", [])],
    )
    nodes = [node("Loop", ["n", "", "x"], ["last", "all"], body=loop), node("Mul", ["last", "k"], ["y"])]
    model = plain(*nodes, **w, n=np.array(3))
    model.graph.output.append(value("all", [3]))
    found["loop"] = Small(model, FEED)
    step = body(
        "step",
        [node("Add", ["s", "e"], ["s_out"]), node("Softmax", ["s_out"], ["p"]), node("Identity", ["p"], ["o"])],
        [value("s", [8]), value("e", [8])],
        [value("s_out", [8]), value("o", [8])],
    )
    scan = node("Scan", ["zero", "x"], ["final", "y"], body=step, num_scan_inputs=1)
    found["scan"] = Small(plain(scan, zero=np.zeros(8, np.float32)), FEED)
    inner = body("inner", [node("Add", ["q", "x"], ["io"])], [], [value("io", [2, 8])])
    deep = body("deep", [node("Exp", ["q"], ["io"])], [], [value("io", [2, 8])])
    nested = body(
        "nested",
        [node("Mul", ["x", "k"], ["q"]), node("If", ["c"], ["o"], then_branch=inner, else_branch=deep)],
        [],
        [value("o", [2, 8])],
    )
    plainly = body("plainly", [node("Identity", ["x"], ["o"])], [], [value("o", [2, 8])])
    nodes = [node("ReduceSum", ["x"], ["t"], keepdims=0), node("Less", ["t", "k"], ["c"])]
    nodes += [node("If", ["c"], ["y"], then_branch=nested, else_branch=plainly)]
    found["nested"] = Small(plain(*nodes, k=np.float32(1e4)), {"x": np.abs(normal(2, 8))})
    return found


def _functions() -> dict[str, Small]:
    scaled = helper.make_function(
        "local", "Scaled", ["a"], ["b"],
        [node("Constant", [], ["k"]), node("Mul", ["a", "k"], ["b"])],
        [helper.make_opsetid("", 17)], ["factor"],
    )  # fmt: skip
    reference = scaled.node[0].attribute.add()
    reference.name, reference.ref_attr_name, reference.type = "value_float", "factor", onnx.AttributeProto.FLOAT
    nested = helper.make_function(
        "local", "Twice", ["a"], ["c"],
        [
            node("Scaled", ["a"], ["b"], domain="local", factor=0.5),
            node("Scaled", ["b"], ["c"], domain="local", factor=3.0),
        ],
        [helper.make_opsetid("", 17), helper.make_opsetid("local", 1)],
    )  # fmt: skip
    nodes = [node("Twice", ["x"], ["t"], domain="local"), node("Scaled", ["t"], ["y"], domain="local", factor=2.0)]
    model = graph(nodes, X, Y, domains=["local"], ir=9)
    model.functions.extend([scaled, nested])
    return {"functions": Small(model, FEED)}


PARTS: Sequence[Callable[[], dict[str, Small]]] = (_types, _constants, _wiring, _shared, _bodies, _functions)


def small_graphs() -> dict[str, Small]:
    """Return all of them by name, the same whoever drew numbers before."""
    RANDOM.bit_generator.state = np.random.default_rng(0).bit_generator.state
    return {name: small for part in PARTS for name, small in part().items()}


def written(folder: Path, *arrays: NDArray[np.float32]) -> list[Path]:
    """Write a sample of the input x for each array."""
    files = [folder / f"{index}.npz" for index in range(len(arrays))]
    for file, array in zip(files, arrays, strict=True):
        write(file, {"x": array})
    return files
