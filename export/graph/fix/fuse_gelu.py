"""x/2 (1 + erf(x/√2)) and x/2 (1 + tanh(√(2/π) (x + 0.044715 x³))) -> Gelu."""

from __future__ import annotations

import math
from typing import Any

import onnx_ir as ir
from onnxscript.rewriter import pattern

# Where Gelu came to ONNX.
OPSET = 20
ROOT, ROOT_2_PI, CUBIC = math.sqrt(2), math.sqrt(2 / math.pi), 0.044715


class FuseGelu(ir.passes.InPlacePass):
    """Fuse Gelu for an engine that has it and not its parts; a graph before opset 20 stays as it is."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite every GELU of either form, whatever the order of its products."""
        if model.graph.opset_imports.get("", 0) < OPSET:
            return ir.passes.PassResult(model, False)
        return ir.passes.PassResult(model, bool(_RULES.apply_to_model(model)))


def _one_plus_erf(op: Any, x: Any) -> Any:
    return op.Add(op.Erf(pattern.OrValue([op.Div(x, ROOT), op.Mul(x, 1 / ROOT)])), 1.0)


def _one_plus_tanh(op: Any, x: Any) -> Any:
    cube = pattern.OrValue([op.Pow(x, 3.0), op.Mul(op.Mul(x, x), x)])
    return op.Add(op.Tanh(op.Mul(op.Add(x, op.Mul(cube, CUBIC)), ROOT_2_PI)), 1.0)


def _erf(op: Any, x: Any) -> Any:
    return op.Gelu(x)


def _tanh(op: Any, x: Any) -> Any:
    return op.Gelu(x, approximate="tanh")


def _rules(gate: Any, replacement: Any) -> list[pattern.RewriteRule]:
    """Return the three ways to multiply x, one half and the gate; their orders come by commutation."""
    products = (
        lambda op, x: op.Mul(op.Mul(x, gate(op, x)), 0.5),
        lambda op, x: op.Mul(op.Mul(gate(op, x), 0.5), x),
        lambda op, x: op.Mul(op.Mul(x, 0.5), gate(op, x)),
    )
    return [pattern.RewriteRule(product, replacement) for product in products]


_RULES = pattern.RewriteRuleSet([*_rules(_one_plus_erf, _erf), *_rules(_one_plus_tanh, _tanh)], commute=True)
