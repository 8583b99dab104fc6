"""Choose each module's file format: ``--format``."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Protocol

from edgeglm.devices.profile import Profile
from edgeglm.errors import UnsupportedError, UsageError
from edgeglm.export.model import Choice
from edgeglm.suggest import nearest_name

FORMATS = ("onnx", "tflite")
LITERT = "litert"
INSTALL = "pip install 'edgeglm[tflite]'"
# What the converter's tools do right (docs/decisions/0007-tflite.md), and why not the others.
PRECISIONS = ("fp32", "int8", "int4")
REFUSED = {
    "fp16": "the quantizer writes over the weights that prefill and decode share, and LiteRT would widen them to fp32",
    "int8-static": "int8 is made in both ways, and the nearer one is taken",
}
INT4_BLOCK = 32
# Gathered, not multiplied with.
TABLES = ("embed_tokens.weight", "position_embedding.weight")


class Named(Protocol):
    """A tensor of the checkpoint."""

    @property
    def name(self) -> str:
        """The model's name in the checkpoint."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Outermost first."""


def with_formats(
    choices: Sequence[Choice], profile: Profile, text: str, tensors: Iterable[Named]
) -> tuple[Choice, ...]:
    """Return the choices with their formats as a ``--format`` such as ``tflite`` or ``vision=tflite`` has them.

    Raises:
        UsageError: It names no format or module, or one twice.
        UnsupportedError: The device does not run it, or it has no such precision, or the converter is missing.
    """
    asked = _parse(text, [choice.name for choice in choices if choice.engine])
    general = asked.get("*", "onnx")
    found = tuple(
        _tflite(choice, profile, text) if choice.engine and asked.get(choice.name, general) == "tflite" else choice
        for choice in choices
    )
    _check_blocks([choice.name for choice in found if choice.engine == LITERT and choice.precision == "int4"], tensors)
    return found


def _parse(text: str, modules: Sequence[str]) -> dict[str, str]:
    asked: dict[str, str] = {}
    for item in text.split(","):
        name, equals, value = item.strip().partition("=")
        if not equals:
            name, value = "*", name
        elif name not in modules:
            raise UsageError(f"--format {text}", f"{name!r} is no module with a graph", nearest_name(name, modules))
        if value not in FORMATS:
            raise UsageError(f"--format {text}", f"{value!r} is no format", nearest_name(value, FORMATS))
        if name in asked:
            raise UsageError(f"--format {text}", "says something twice", "write tflite, or vision=tflite,decoder=onnx")
        asked[name] = value
    return asked


def _tflite(choice: Choice, profile: Profile, text: str) -> Choice:
    what = f"--format {text}"
    if LITERT not in profile.engines.value:
        raise UnsupportedError(what, f"{profile.name} has no LiteRT among its engines", "leave it out")
    if choice.parts:
        raise UnsupportedError(what, f"a TFLite {choice.name} has one precision", "name none of its parts")
    on_npu = choice.placement == "npu"  # in one of its own precisions
    if choice.precision not in PRECISIONS and not on_npu:
        why = REFUSED.get(choice.precision, "is not what TFLite stores")
        remedy = f"choose one of {', '.join(PRECISIONS)}"
        raise UnsupportedError(f"{what} with {choice.name}={choice.precision}", why, remedy)
    if importlib.util.find_spec("litert_torch") is None:
        raise UnsupportedError(what, "the converter is not installed", INSTALL)
    if on_npu:
        return replace(choice, engine="litert")
    return replace(choice, engine="litert", placement="cpu", dialect="portable")


def _check_blocks(modules: Sequence[str], tensors: Iterable[Named]) -> None:
    """Check that INT4 rows are whole in blocks. Raises UnsupportedError."""
    for tensor in tensors if modules else ():
        module = "vision" if ".visual." in tensor.name else "decoder"
        columns = math.prod(tensor.shape[1:])
        is_product = len(tensor.shape) > 1 and not tensor.name.endswith(TABLES)
        if module in modules and is_product and columns % INT4_BLOCK:
            why = f"INT4 is stored in blocks of {INT4_BLOCK}, and {tensor.name} has rows of {columns}"
            raise UnsupportedError(f"{module}=int4", why, f"choose {module}=int8")
