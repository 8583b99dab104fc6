"""Replace the value that masks a token before a softmax, -1e4 or -inf -> -30, for static INT8."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

# exp(-30) is 1e-13: no softmax lets it through. One of -1e4 makes the steps of INT8 80 wide, and all scores equal.
HIDDEN = -30.0
LARGE = -1e3
# What a mask passes through on its way.
THROUGH = set("Add Sub Mul Where Expand Cast Reshape Unsqueeze Squeeze Slice Concat Transpose Identity".split())


class MaskRange(ir.passes.InPlacePass):
    """Narrow a mask for static quantization, so that calibrated ranges are those of the scores."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Raise every large negative number that reaches a Softmax by additions, choices and changes of shape."""
        modified = False
        for node in model.graph:
            if (node.domain, node.op_type) == ("", "Softmax"):
                modified |= _raise_before(node.inputs[0], set())
        return ir.passes.PassResult(model, modified)


def _raise_before(value: ir.Value | None, seen: set[ir.Value]) -> bool:
    if value is None or value in seen:
        return False
    seen.add(value)
    if value.const_value is not None:
        return value.is_initializer() and _raise_initializer(value)
    node = value.producer()
    if node is None:
        return False
    if node.op_type in ("Constant", "ConstantOfShape"):
        return _raise_attribute(node)
    if node.op_type not in THROUGH:
        return False
    return bool(sum(_raise_before(value, seen) for value in node.inputs))


def _raise_initializer(value: ir.Value) -> bool:
    raised = _raised(value.const_value)
    if raised is not None:
        value.const_value = ir.tensor(raised, name=value.name)
    return raised is not None


def _raise_attribute(node: ir.Node) -> bool:
    for name in ("value", "value_float"):
        attribute = node.attributes.get(name)
        if attribute is None:
            continue
        if name == "value_float" and attribute.as_float() <= LARGE:
            node.attributes[name] = ir.AttrFloat32(name, HIDDEN)
            return True
        if name == "value" and (raised := _raised(attribute.as_tensor())) is not None:
            node.attributes[name] = ir.AttrTensor(name, ir.tensor(raised))
            return True
    return False


def _raised(tensor: ir.TensorProtocol | None) -> NDArray[Any] | None:
    if tensor is None or not tensor.dtype.is_floating_point():
        return None
    array = tensor.numpy()
    if not array.size or not (array <= LARGE).any():
        return None
    return np.where(array <= LARGE, array.dtype.type(HIDDEN), array)
