"""x / √(mean x² + ε) * weight -> RMSNormalization; (x - mean) / √(variance + ε) * weight + bias -> LayerNormalization.

As one operator a norm keeps its sum in fp32, and QNN computes it right: of a decomposed one whose weight's product
feeds an addition it computes wrong numbers without an error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import onnx_ir as ir
from onnxscript.rewriter import pattern

# Where they came to ONNX.
LAYER_NORM_OPSET, RMS_NORM_OPSET = 17, 23
FLOATS = {ir.DataType.FLOAT, ir.DataType.FLOAT16}


class FuseNorms(ir.passes.InPlacePass):
    """Norms over the last axis, in the graph's type or in fp32 between two casts, where the opset has the operator."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite every norm of either kind."""
        opset = model.graph.opset_imports.get("", 0)
        graphs = (model.graph, *(function.graph for function in model.functions.values()))
        # Without a root there is nothing to find, and looking for it in a large graph takes seconds.
        is_decomposed = any(node.op_type == "Sqrt" for graph in graphs for node in graph.all_nodes())
        count = 0
        if opset >= LAYER_NORM_OPSET:
            count += _LAYER_NORMS.apply_to_model(model) if is_decomposed else 0
            count += _BIASES.apply_to_model(model)
        if opset >= RMS_NORM_OPSET and is_decomposed:
            count += _RMS_NORMS.apply_to_model(model)
        return ir.passes.PassResult(model, bool(count))


Pattern = Callable[..., Any]


def _mean(op: Any, x: Any, name: str) -> Any:
    return op.ReduceMean(x, _allow_other_inputs=True, _outputs=[name])


def _squared(op: Any, x: Any) -> Any:
    return pattern.OrValue([op.Mul(x, x), op.Pow(x, 2.0)])


def _divided(op: Any, x: Any, root: Any, *, reciprocal: bool) -> Any:
    return op.Mul(x, op.Reciprocal(root)) if reciprocal else op.Div(x, root)


def _rms_norm(*, wide: bool, reciprocal: bool) -> Pattern:
    def form(op: Any, x: Any, weight: Any, epsilon: Any) -> Any:
        inner = op.Cast(x, to=ir.DataType.FLOAT) if wide else x
        root = op.Sqrt(op.Add(_mean(op, _squared(op, inner), "mean"), epsilon))
        unit = _divided(op, inner, root, reciprocal=reciprocal)
        return op.Mul(op.Cast(unit, _outputs=["narrow"]) if wide else unit, weight)

    return form


def _layer_norm(*, wide: bool, reciprocal: bool) -> Pattern:
    def form(op: Any, x: Any, weight: Any, epsilon: Any) -> Any:
        inner = op.Cast(x, to=ir.DataType.FLOAT) if wide else x
        centred = op.Sub(inner, _mean(op, inner, "centre"))
        root = op.Sqrt(op.Add(_mean(op, _squared(op, centred), "mean"), epsilon))
        unit = _divided(op, centred, root, reciprocal=reciprocal)
        return op.Mul(op.Cast(unit, _outputs=["narrow"]) if wide else unit, weight)

    return form


def _fits(_: Any, x: ir.Value, weight: ir.Value, epsilon: ir.Value, mean: ir.Value, **more: Any) -> bool:
    """Return whether it is over the last axis alone, with a constant epsilon and a weight of the type of x."""
    number = ir.convenience.get_const_tensor(epsilon)
    means = [mean, *([more["centre"]] if more.get("centre") is not None else [])]
    narrow = more.get("narrow")
    return bool(
        number is not None
        and number.size == 1
        and x.dtype in FLOATS
        and weight.dtype == x.dtype
        and weight.shape is not None
        and len(weight.shape) == 1
        and all(_is_over_last_axis(value, x) for value in means)
        and (narrow is None or narrow.dtype == x.dtype)
    )


def _is_over_last_axis(mean: ir.Value, x: ir.Value) -> bool:
    node = mean.producer()
    if node is None or x.shape is None or node.attributes.get_int("keepdims", 1) != 1:
        return False
    if "axes" in node.attributes:
        axes = list(node.attributes["axes"].as_ints())
    else:
        tensor = ir.convenience.get_const_tensor(node.inputs[1]) if len(node.inputs) > 1 and node.inputs[1] else None
        axes = [] if tensor is None else tensor.numpy().reshape(-1).tolist()
    return axes in ([-1], [len(x.shape) - 1])


def _to_rms_norm(op: Any, x: ir.Value, weight: ir.Value, epsilon: ir.Value, **_: Any) -> Any:
    return op.RMSNormalization(x, weight, axis=-1, epsilon=_number(epsilon), stash_type=1)


def _to_layer_norm(op: Any, x: ir.Value, weight: ir.Value, epsilon: ir.Value, **_: Any) -> Any:
    return op.LayerNormalization(x, weight, axis=-1, epsilon=_number(epsilon), stash_type=1)


def _number(value: ir.Value) -> float:
    tensor = ir.convenience.get_const_tensor(value)
    assert tensor is not None
    return float(tensor.numpy().reshape(()))


def _biased(op: Any, x: Any, weight: Any, bias: Any) -> Any:
    return op.Add(op.LayerNormalization(x, weight, _outputs=["norm"]), bias)


def _bias_fits(_: Any, weight: ir.Value, bias: ir.Value, **__: Any) -> bool:
    return bias.shape is not None and bias.shape == weight.shape and bias.dtype == weight.dtype


def _with_bias(op: Any, x: ir.Value, weight: ir.Value, bias: ir.Value, norm: ir.Value) -> Any:
    node = norm.producer()
    assert node is not None
    return op.LayerNormalization(x, weight, bias, **node.attributes)


def _forms(form: Callable[..., Pattern]) -> Iterator[Pattern]:
    return (form(wide=wide, reciprocal=reciprocal) for wide in (False, True) for reciprocal in (False, True))


_RMS_NORMS = pattern.RewriteRuleSet(
    [pattern.RewriteRule(form, _to_rms_norm, _fits) for form in _forms(_rms_norm)], commute=True
)
_LAYER_NORMS = pattern.RewriteRuleSet(
    [pattern.RewriteRule(form, _to_layer_norm, _fits) for form in _forms(_layer_norm)], commute=True
)
_BIASES = pattern.RewriteRuleSet([pattern.RewriteRule(_biased, _with_bias, _bias_fits)], commute=True)
