"""Emit TFLite: torch modules to one file of signatures that share weights, and its weights quantized.

Imports the converter, so it belongs into a process of its own. Conversion takes about three times the fp32 weights.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import litert_torch
import numpy as np
import torch
from ai_edge_quantizer import qtyping
from ai_edge_quantizer.algorithm_manager import AlgorithmName
from ai_edge_quantizer.calibrator import Calibrator
from ai_edge_quantizer.quantizer import Quantizer
from ai_edge_quantizer.recipe_manager import RecipeManager
from litert_torch.backend import debuginfo
from numpy.typing import NDArray
from torch import Tensor, nn

Operation, Granularity = qtyping.TFLOperationName, qtyping.QuantGranularity
BROKEN = "overriding other previously quantized data"


class BrokenModelError(Exception):
    """The quantizer wrote over what it had already quantized."""


def _place(node: torch.fx.Node) -> str | None:
    """Return where the layer of a node is in the module, such as ``blocks.0.block.mlp``."""
    stack = list(node.meta.get("nn_module_stack", {}).values())
    return f"{stack[-1][0] or 'module'};" if stack else None


# A tensor is named after the place of its layer in the module. The converter would name it after Python's classes and
# modules too, and the bytes of bundles would change with a file that moves.
debuginfo.build_mlir_debuginfo = _place


def convert(module: nn.Module, signatures: Mapping[str, Mapping[str, Tensor]], path: Path) -> None:
    """Write a module in fp32, with a signature for each set of inputs."""
    converter: Any = litert_torch
    for name, inputs in signatures.items():
        converter = converter.signature(name, module, sample_kwargs=dict(inputs))
    with torch.no_grad():
        converter.convert(lightweight_conversion=True).export(str(path))


def quantize(source: Path, precision: str, target: Path, samples: Mapping[str, Sequence[NDArray[Any]]] = {}) -> None:
    """Quantize a file.

    Args:
        source: In fp32.
        precision: One of `RECIPES`.
        target: Where it is written.
        samples: Of each input, for static ranges.

    Raises:
        BrokenModelError: The quantizer's result would be wrong.
    """
    recipe = RecipeManager()
    RECIPES[precision](recipe)
    with _no_broken_model():
        quantizer = Quantizer(str(source), recipe.get_quantization_recipe())
        feeds = [dict(zip(samples, row, strict=True)) for row in zip(*samples.values(), strict=True)]
        ranges: dict[str, Any] | None = None
        if precision in WHOLE:
            seen = Calibrator(str(source), num_threads=1, qsv_update_func=_both)
            seen.calibrate({ENCODE: feeds}, recipe)
            ranges = seen.get_model_qsvs()
        elif quantizer.need_calibration:
            ranges = quantizer.calibrate({ENCODE: feeds}, num_threads=1)
        quantizer.quantize(ranges, str(target), enable_progress_bar=False, enable_progress_report=False)


# The signature of a module without a state.
ENCODE = "encode"


def _dynamic(recipe: RecipeManager) -> None:
    """Quantize weights with a scale an output channel, activations as they come with a scale a token."""
    recipe.add_dynamic_config(".*", Operation.ALL_SUPPORTED, 8)


def _static(recipe: RecipeManager) -> None:
    """Quantize activations too, in calibrated ranges and in products alone: all else loses more (decision 0007)."""
    recipe.add_static_config(".*", Operation.FULLY_CONNECTED, 8, 8)


def _integers(bits: int, recipe: RecipeManager) -> None:
    """Quantize all values in calibrated ranges, between floats at both ends, as an NPU takes them.

    The product of two activations has 8 bits in any case: Hexagon v68 has none of 16.
    """
    recipe.add_static_config(".*", Operation.ALL_SUPPORTED, bits, 8)
    recipe.add_static_config(".*", Operation.BATCH_MATMUL, 8, 8)
    for end in (Operation.INPUT, Operation.OUTPUT):
        recipe.add_quantization_config(".*", end, algorithm_key=AlgorithmName.NO_QUANTIZE)


def _blocks(recipe: RecipeManager) -> None:
    """Quantize weights with a scale for 32 columns of a row, activations in 8 bits."""
    recipe.add_dynamic_config(".*", Operation.FULLY_CONNECTED, 4, Granularity.BLOCKWISE_32)


RECIPES: Mapping[str, Callable[[RecipeManager], None]] = {
    "int8": _dynamic,
    "int8-static": _static,
    "int4": _blocks,
    "a8w8": partial(_integers, 8),
    "a16w8": partial(_integers, 16),
}


# The quantizer's own way, a moving average, cuts off what one picture alone reaches: on the demo in 16 bits that is an
# error of 0.13 instead of 0.04.
WHOLE = ("a8w8", "a16w8")


def _both(seen: dict[str, Any], found: dict[str, Any]) -> dict[str, Any]:
    """Return the range that holds two ranges."""
    return {"min": np.minimum(seen["min"], found["min"]), "max": np.maximum(seen["max"], found["max"])}


class _Refusing(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        if BROKEN in record.getMessage():
            raise BrokenModelError(record.getMessage())


@contextmanager
def _no_broken_model() -> Iterator[None]:
    """Raise an error where the quantizer only warns that its result is broken."""
    handler = _Refusing()
    logging.getLogger().addHandler(handler)
    try:
        yield
    finally:
        logging.getLogger().removeHandler(handler)
