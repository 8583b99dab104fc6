"""Small graphs of operators that fp16, INT8 or an engine take in their own ways, in old opsets and new ones."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import TensorProto as T
from onnx import helper, numpy_helper

from tests.export.foreign.small_graphs import FEED, RANDOM, Small, Weights, X, Y, graph, node, normal, plain, value


def small_operators() -> dict[str, Small]:
    """Return them by name."""
    w, sequence = normal(8, 8, scale=0.3), normal(6, 2, 8)
    found = {}
    for operator, gates in (("GRU", 3), ("LSTM", 4), ("RNN", 1)):
        weights = {"w": normal(1, 8 * gates, 8, scale=0.3), "u": normal(1, 8 * gates, 8, scale=0.3)}
        nodes = [node(operator, ["x", "w", "u", "", "lengths"], ["y"], hidden_size=8)]
        inputs = [value("x", [6, 2, 8]), value("lengths", [2], T.INT32)]
        model = graph(nodes, inputs, [value("y", [6, 1, 2, 8])], weights)
        found[operator] = Small(model, {"x": sequence, "lengths": np.array([6, 3], np.int32)})
    quantized: Weights = {
        "xs": np.float32(0.02),
        "xz": np.uint8(128),
        "q": RANDOM.integers(-99, 99, (8, 4)).astype(np.int8),
    }
    quantized |= {"ws": np.full(4, 0.01, np.float32), "wz": np.zeros(4, np.int8)}
    nodes = [
        node("QuantizeLinear", ["x", "xs", "xz"], ["a"]),
        node("DequantizeLinear", ["a", "xs", "xz"], ["d"]),
        node("DequantizeLinear", ["q", "ws", "wz"], ["e"], axis=1),
        node("MatMul", ["d", "e"], ["y"]),
    ]
    every = ("fp32", "fp16", "int8")
    found["qdq"] = Small(plain(*nodes, **quantized), FEED, precisions=every)
    nodes = [
        node("DynamicQuantizeLinear", ["x"], ["a", "s", "z"]),
        node("MatMulInteger", ["a", "q", "z"], ["i"]),
        node("Cast", ["i"], ["f"], to=T.FLOAT),
        node("Mul", ["f", "s"], ["y"]),
    ]
    found["dynamic"] = Small(plain(*nodes, q=quantized["q"]), FEED, precisions=every)
    nodes = [node("DynamicQuantizeMatMul", ["x", "q", "ws"], ["y"], domain="com.microsoft")]
    model = graph(
        nodes, X, [value("y", [2, 4])], {"q": quantized["q"], "ws": quantized["ws"]}, domains=["com.microsoft"]
    )
    found["microsoft"] = Small(model, FEED, precisions=every)
    nodes = [
        node("FusedMatMul", ["x", "w"], ["m"], domain="com.microsoft", alpha=0.5),
        node("Gelu", ["m"], ["g"], domain="com.microsoft"),
    ]
    model = graph(
        [*nodes, node("Mul", ["g", "k"], ["y"])],
        X,
        [value("y", [2, 8])],
        {"w": w, "k": np.float32(2)},
        domains=["com.microsoft"],
    )
    found["contrib"] = Small(model, FEED)
    nodes = [
        node("Shape", ["x"], ["s"]),
        node("Cast", ["s"], ["f"], to=T.FLOAT),
        node("Mul", ["f", "k"], ["h"]),
        node("Floor", ["h"], ["l"]),
    ]
    nodes += [
        node("Cast", ["l"], ["n"], to=T.INT64),
        node("ConstantOfShape", ["n"], ["z"], value=numpy_helper.from_array(np.array([0.5], np.float32))),
        node("ReduceSum", ["z"], ["t"], keepdims=0),
        node("Add", ["x", "t"], ["y"]),
    ]
    found["shape_in_floats"] = Small(plain(*nodes, k=np.float32(2.5)), FEED)
    nodes = [
        node("Range", ["a", "b", "c"], ["r"]),
        node("Mul", ["r", "f"], ["p"]),
        node("Sin", ["p"], ["s"]),
        node("Reshape", ["s", "i"], ["m"]),
        node("ReduceSum", ["m", "axis"], ["v"], keepdims=0),
        node("Add", ["x", "v"], ["y"]),
    ]
    consts: Weights = {
        "a": np.float32(0),
        "b": np.float32(4096),
        "c": np.float32(1),
        "f": np.float32(1.1),
        "i": np.array([-1, 8]),
        "axis": np.array([0]),
    }
    found["positions"] = Small(plain(*nodes, **consts), FEED, error=0.02)
    nodes = [
        node("Cast", ["m"], ["f"], to=T.FLOAT),
        node("Sub", ["one", "f"], ["i"]),
        node("Mul", ["i", "low"], ["b"]),
        node("Add", ["x", "b"], ["a"]),
        node("Softmax", ["a"], ["y"]),
    ]
    model = graph(nodes, [*X, value("m", [2, 8], T.INT64)], Y, {"one": np.float32(1), "low": np.float32(-1e9)})
    found["mask"] = Small(model, {**FEED, "m": np.array([[1] * 4 + [0] * 4, [1] * 7 + [0]])})
    nodes = [
        node("SequenceConstruct", ["x", "x"], ["s"]),
        node("SequenceAt", ["s", "i"], ["e"]),
        node("Mul", ["e", "k"], ["y"]),
    ]
    found["sequence_inside"] = Small(plain(*nodes, i=np.array(1), k=np.float32(2)), FEED)
    nodes = [
        node("SplitToSequence", ["x"], ["s"], axis=1),
        node("ConcatFromSequence", ["s"], ["c"], axis=1),
        node("Mul", ["c", "k"], ["y"]),
    ]
    found["split_sequence"] = Small(plain(*nodes, k=np.float32(2)), FEED)
    conv = {
        "cw": normal(4, 3, 3, 3, scale=0.2),
        "cb": normal(4),
        "s": np.ones(4, np.float32),
        "m": np.zeros(4, np.float32),
    }
    nodes = [
        node("Conv", ["x", "cw", "cb"], ["c"], pads=[1] * 4),
        node("BatchNormalization", ["c", "s", "cb", "m", "s"], ["n"]),
        node("HardSwish", ["n"], ["h"]),
        node("MaxPool", ["h"], ["p"], kernel_shape=[2, 2], strides=[2, 2]),
        node("GlobalAveragePool", ["p"], ["y"]),
    ]
    model = graph(nodes, [value("x", [1, 3, 16, 16])], [value("y", [1, 4, 1, 1])], conv)
    found["conv"] = Small(model, {"x": normal(1, 3, 16, 16)}, precisions=("fp32", "fp16", "int8"))
    old = graph(
        [
            node("Conv", ["x", "cw", "cb"], ["c"], pads=[1] * 4),
            node("Relu", ["c"], ["r"]),
            node("Upsample", ["r", "up"], ["u"]),
            node("Pad", ["u"], ["p"], pads=[0, 0, 1, 1, 0, 0, 1, 1]),
            node("Softmax", ["p"], ["y"], axis=1),
        ],
        [value("x", [1, 3, 8, 8])],
        [value("y", [1, 4, 18, 18])],
        {"cw": conv["cw"], "cb": conv["cb"], "up": np.array([1, 1, 2, 2], np.float32)},
        opset=9,
        ir=4,
    )
    found["opset_9"] = Small(old, {"x": normal(1, 3, 8, 8)}, error=1e-2, precisions=("fp32", "fp16", "int8"))
    seven = graph(
        [
            node("Gemm", ["x", "w", "b"], ["g"], transB=1),
            node("Dropout", ["g"], ["d"]),
            node("Unsqueeze", ["d"], ["u"], axes=[0]),
            node("Squeeze", ["u"], ["s"], axes=[0]),
            node("Slice", ["s"], ["l"], axes=[1], starts=[0], ends=[6]),
            node("ReduceSum", ["l"], ["y"], axes=[1]),
        ],
        [*X, value("w", [8, 8]), value("b", [8])],
        [value("y", [2, 1])],
        {"w": w, "b": normal(8)},
        opset=7,
        ir=3,
    )
    found["opset_7"] = Small(seven, FEED, precisions=("fp32", "fp16", "int8"))
    new = graph(
        [node("RMSNormalization", ["x", "g"], ["n"]), node("Gelu", ["n"], ["e"]), node("Swish", ["e"], ["y"])],
        X,
        Y,
        {"g": np.ones(8, np.float32)},
        opset=24,
        ir=11,
    )
    found["opset_24"] = Small(new, FEED)
    nodes = [
        node("Einsum", ["x", "w"], ["e"], equation="ij,jk->ik"),
        node("OneHot", ["ids", "d", "v"], ["o"]),
        node("MatMul", ["o", "e"], ["m"]),
        node("Pow", ["m", "two"], ["p"]),
        node("Sqrt", ["p"], ["y"]),
    ]
    found["operators"] = Small(
        plain(*nodes, w=w, ids=np.array([0, 1]), d=np.array(2), v=np.array([0, 1], np.float32), two=np.float32(2)), FEED
    )
    nodes = [node("NonMaxSuppression", ["x", "s", "n", "iou"], ["i"]), node("Cast", ["i"], ["y"], to=T.FLOAT)]
    boxes = np.sort(np.abs(normal(1, 6, 2, 2)), 2).transpose(0, 1, 3, 2).reshape(1, 6, 4)[..., [0, 2, 1, 3]].copy()
    model = graph(
        nodes,
        [value("x", [1, 6, 4]), value("s", [1, 1, 6])],
        [value("y", ["k", 3])],
        {"n": np.array([4]), "iou": np.array([0.5], np.float32)},
        opset=13,
    )
    found["nms"] = Small(model, {"x": boxes, "s": np.abs(normal(1, 1, 6))})
    nodes = [node("RandomUniformLike", ["x"], ["r"]), node("Mul", ["r", "zero"], ["z"]), node("Add", ["x", "z"], ["y"])]
    found["random"] = Small(plain(*nodes, zero=np.float32(0)), FEED)
    nodes = [node("CastLike", ["m", "x"], ["f"]), node("Mul", ["x", "f"], ["y"])]
    found["castlike"] = Small(plain(*nodes, m=np.array([True, False] * 4)), FEED)
    nodes = [node("Optional", ["x"], ["o"]), node("OptionalGetElement", ["o"], ["e"]), node("Relu", ["e"], ["y"])]
    found["optional_inside"] = Small(plain(*nodes), FEED)
    half = graph(
        [
            node("MatMul", ["x", "w"], ["m"]),
            node("Cast", ["m"], ["f"], to=T.FLOAT),
            node("Softmax", ["f"], ["s"]),
            node("Cast", ["s"], ["y"], to=T.FLOAT16),
        ],
        [value("x", [2, 8], T.FLOAT16)],
        [value("y", [2, 8], T.FLOAT16)],
        {"w": w.astype(np.float16)},
    )
    nodes = [node("STFT", ["x", "step", "window"], ["s"]), node("ReduceSumSquare", ["s", "axis"], ["p"], keepdims=0)]
    spectrum: Weights = {"step": np.array(8), "window": np.hanning(16).astype(np.float32), "axis": np.array([3])}
    nodes += [node("MatMul", ["p", "mel"], ["m"]), node("Sqrt", ["m"], ["y"])]
    model = graph(
        nodes, [value("x", [1, 64, 1])], [value("y", [1, 7, 4])], {**spectrum, "mel": np.abs(normal(9, 4))}, opset=18
    )
    found["spectrum"] = Small(model, {"x": normal(1, 64, 1)}, precisions=every)
    trees: dict[str, Any] = {
        "nodes_treeids": [0] * 3, "nodes_nodeids": [0, 1, 2], "nodes_featureids": [0] * 3,
        "nodes_values": [0.1, 0.0, 0.0], "nodes_modes": ["BRANCH_LEQ", "LEAF", "LEAF"], "nodes_truenodeids": [1, 0, 0],
        "nodes_falsenodeids": [2, 0, 0], "class_treeids": [0, 0], "class_nodeids": [1, 2], "class_ids": [0, 1],
        "class_weights": [1.0, 1.0], "classlabels_int64s": [3, 5],
    }  # fmt: skip
    learned = graph(
        [
            node("TreeEnsembleClassifier", ["x"], ["label", "p"], domain="ai.onnx.ml", **trees),
            node("ZipMap", ["p"], ["maps"], domain="ai.onnx.ml", classlabels_int64s=[3, 5]),
        ],
        X,
        [value("label", [2], T.INT64)],
        domains=["ai.onnx.ml"],
    )
    scores = helper.make_map_type_proto(T.INT64, helper.make_tensor_type_proto(T.FLOAT, []))
    learned.graph.output.append(helper.make_value_info("maps", helper.make_sequence_type_proto(scores)))
    found["maps"] = Small(learned, FEED)
    found["half_already"] = Small(half, {"x": FEED["x"].astype(np.float16)})
    return found
