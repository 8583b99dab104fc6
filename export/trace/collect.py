"""Collections that torch's exporter makes anew for every graph, made once: they take as long as the trace itself.

Nothing of ours changes its operators. A torch or an onnxscript that keeps them elsewhere collects them as ever.
"""

from __future__ import annotations

from contextlib import suppress
from functools import cache
from importlib import import_module
from typing import Any

EXPORTER = "torch.onnx._internal.exporter"


def collect_once() -> None:
    """Have the exporter collect its operators and their decompositions once in this process."""
    for change in (_list_once, _read_no_source, _decompose_by_one_table):
        with suppress(ImportError, AttributeError):
            change()


def _list_once() -> None:
    registry: Any = import_module(f"{EXPORTER}._registration").ONNXRegistry
    registry.from_torchlib = staticmethod(cache(registry.from_torchlib))
    for module in ("decomp_utils", "exported_program"):
        place: Any = import_module(f"torch.export.{module}")
        place._collect_all_valid_cia_ops = cache(place._collect_all_valid_cia_ops)


def _read_no_source() -> None:
    """Answer who asks an operator's function for its domain with the operator's set: it would be parsed for that."""
    operators: Any = import_module(f"{EXPORTER}._registration").onnxscript_apis
    function: Any = import_module("onnxscript._internal.values").TracedOnnxFunction
    list_all, parse = operators.get_torchlib_ops, function.function_ir

    def list_unparsed() -> Any:
        function.function_ir = property(lambda traced: traced.opset)
        try:
            return list_all()
        finally:
            function.function_ir = parse

    operators.get_torchlib_ops = list_unparsed


def _decompose_by_one_table() -> None:
    place: Any = import_module(f"{EXPORTER}._decomp")
    make = cache(place.create_onnx_friendly_decomposition_table)
    # Who asks takes out of it what is handled.
    place.create_onnx_friendly_decomposition_table = lambda operators: dict(make(frozenset(operators)))
