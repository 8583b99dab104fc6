"""Conv with a stride as large as its kernel -> patches times a matrix: the patch embedding of a vision tower."""

from __future__ import annotations

import math

import onnx_ir as ir


class PatchMatMul(ir.passes.InPlacePass):
    """Convolutions of any number of dimensions, without padding, dilation or groups, whose sizes are fixed.

    No tensor in between has more than four dimensions, so that every engine takes them.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite every such convolution whose weight is at hand."""
        nodes = [node for node in model.graph if (node.domain, node.op_type) == ("", "Conv") and _is_patchwise(node)]
        for node in nodes:
            _rewrite(model.graph, node)
        return ir.passes.PassResult(model, bool(nodes))


def _is_patchwise(node: ir.Node) -> bool:
    x, weight = node.inputs[:2]
    if x is None or x.shape is None or weight is None or weight.const_value is None or weight.shape is None:
        return False
    sizes, kernel, attributes = list(x.shape[2:]), list(weight.shape[2:]), node.attributes
    strides = list(attributes["strides"].as_ints()) if "strides" in attributes else [1] * len(kernel)
    unusual = (
        [*attributes["pads"].as_ints()] if "pads" in attributes else [],
        [dilation - 1 for dilation in attributes["dilations"].as_ints()] if "dilations" in attributes else [],
        [attributes.get_int("group", 1) - 1],
    )
    return (
        all(isinstance(size, int) for size in (*sizes, *kernel, x.shape[1]))
        and strides == kernel
        and attributes.get_string("auto_pad", "NOTSET") in ("NOTSET", "VALID")
        and not any(map(any, unusual))
        # Else the last pixels would be no patch's.
        and all(int(size) % int(step) == 0 for size, step in zip(sizes, kernel, strict=True))  # type: ignore[arg-type]
    )


def _rewrite(graph: ir.Graph, node: ir.Node) -> None:
    x, weight, bias = (*node.inputs, None)[:3]
    assert x is not None
    assert x.shape is not None
    assert weight is not None
    assert weight.const_value is not None
    tape = ir.tape.Tape()
    kernel = [int(size) for size in weight.shape[2:]]  # type: ignore[index, arg-type]
    counts = [int(size) // step for size, step in zip(x.shape[2:], kernel, strict=True)]  # type: ignore[arg-type]
    channels, rows = int(x.shape[1]), weight.const_value.shape[0]  # type: ignore[arg-type]

    def reshape(value: ir.Value, *sizes: int) -> ir.Value:
        shape = tape.op("Constant", [], {"value": ir.tensor(list(sizes), dtype=ir.DataType.INT64)})
        return tape.op("Reshape", [value, shape])

    # Dimension by dimension, the last one first: counts come before the pixels of a patch. The batch is what is left.
    patches = x
    for axis in reversed(range(len(kernel))):
        count, pixels = math.prod(counts[axis + 1 :]), math.prod(kernel[axis + 1 :])
        if count > 1 and kernel[axis] > 1:
            patches = reshape(patches, -1, kernel[axis], count, pixels)
            patches = tape.op("Transpose", [patches], {"perm": [0, 2, 1, 3]})
    count, pixels = math.prod(counts), math.prod(kernel)
    if count > 1:
        patches = reshape(patches, -1, channels, count, pixels)
        patches = tape.op("Transpose", [patches], {"perm": [0, 2, 1, 3]})
    patches = reshape(patches, -1, count, channels * pixels)
    matrix = _initializer(graph, weight)
    features = tape.op("MatMul", [patches, matrix])
    if bias is not None:
        features = tape.op("Add", [features, bias])
    features = tape.op("Transpose", [features], {"perm": [0, 2, 1]})
    result = reshape(features, -1, int(rows), *counts)  # type: ignore[arg-type]
    ir.convenience.replace_nodes_and_values(graph, node, [node], tape.nodes, node.outputs, [result])


def _initializer(graph: ir.Graph, weight: ir.Value) -> ir.Value:
    """Return the kernels as the columns of a matrix."""
    assert weight.const_value is not None
    kernels = weight.const_value.numpy()
    matrix = kernels.reshape(len(kernels), -1).T.copy()
    name = f"{weight.name}.matrix"
    tensor = ir.tensor(matrix, name=name)
    value = ir.Value(name=name, shape=ir.Shape(matrix.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
    return graph.initializers.setdefault(name, value)
