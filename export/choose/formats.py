"""Choose each module's file format: ``--format``."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from edgeglm.devices.profile import Profile
from edgeglm.engines import ENGINES, USUAL_FORMAT, Format
from edgeglm.errors import UnsupportedError, UsageError
from edgeglm.export.families.registry import module_of
from edgeglm.export.model import Choice
from edgeglm.suggest import nearest_name

FORMATS = tuple(dict.fromkeys(engine.reads for engine in ENGINES.values()))
# Gathered, not multiplied with.
TABLES = ("embed_tokens.weight", "position_embedding.weight")


@dataclass(frozen=True)
class Converter:
    """A converter to a format.

    Args:
        format: What it writes.
        title: Of the format, in messages.
        library: The Python module that it is.
        install: How to get it.
        precisions: What it does right.
        refused: Why not others.
        block: Columns of a block of INT4.
    """

    format: Format
    title: str
    library: str
    install: str
    precisions: tuple[str, ...]
    refused: Mapping[str, str]
    block: int


# docs/decisions/0007-tflite.md.
TFLITE = Converter(
    "tflite",
    "TFLite",
    "litert_torch",
    "pip install 'edgeglm[tflite]'",
    precisions=("fp32", "int8", "int4"),
    refused={
        "fp16": "the quantizer writes over the weights that prefill and decode share, and LiteRT would widen them to "
        "fp32",
        "int8-static": "int8 is made in both ways, and the nearer one is taken",
    },
    block=32,
)
CONVERTERS: dict[Format, Converter] = {converter.format: converter for converter in (TFLITE,)}


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
    """Return the choices with the formats that ``--format`` asks for.

    Args:
        choices: By module.
        profile: The device.
        text: Such as ``tflite`` or ``vision=tflite``.
        tensors: The checkpoint's, for their sizes.

    Raises:
        UsageError: It names no format or module, or one twice.
        UnsupportedError: The device does not run it, or it has no such precision, or the converter is missing.
    """
    asked = _parse(text, [choice.name for choice in choices if choice.engine])
    general = asked.get("*", USUAL_FORMAT)
    converters = {choice.name: CONVERTERS.get(asked.get(choice.name, general)) for choice in choices if choice.engine}
    found = []
    for choice in choices:
        converter = converters.get(choice.name)
        found.append(_converted(choice, profile, converter, text) if converter else choice)
        if converter and choice.precision == "int4":
            _check_blocks(choice.name, converter.block, tensors)
    return tuple(found)


def _parse(text: str, modules: Sequence[str]) -> dict[str, Format]:
    asked: dict[str, Format] = {}
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


def _converted(choice: Choice, profile: Profile, converter: Converter, text: str) -> Choice:
    what, readers = f"--format {text}", [engine for engine in ENGINES.values() if engine.reads == converter.format]
    engine = next((engine for engine in readers if engine.name in profile.engines.value), None)
    if engine is None:
        titles = " or ".join(engine.title for engine in readers)
        raise UnsupportedError(what, f"{profile.name} has no {titles} among its engines", "leave it out")
    if choice.encodes not in (None, "image"):
        raise UnsupportedError(what, f"encoders of {choice.encodes} are made as ONNX alone", f"leave {choice.name} out")
    if choice.parts:
        raise UnsupportedError(what, f"a {converter.title} {choice.name} has one precision", "name none of its parts")
    integers = choice.kind.integers  # in one of its own precisions
    if choice.precision not in converter.precisions and not integers:
        why = converter.refused.get(choice.precision, f"is not what {converter.title} stores")
        remedy = f"choose one of {', '.join(converter.precisions)}"
        raise UnsupportedError(f"{what} with {choice.name}={choice.precision}", why, remedy)
    if importlib.util.find_spec(converter.library) is None:
        raise UnsupportedError(what, "the converter is not installed", converter.install)
    if integers:
        return replace(choice, engine=engine.name)
    return replace(choice, engine=engine.name, placement=engine.placement, dialect=engine.dialect)


def _check_blocks(name: str, block: int, tensors: Iterable[Named]) -> None:
    """Check that INT4 rows are whole in blocks. Raises UnsupportedError."""
    for tensor in tensors:
        module = module_of(tensor.name)
        columns = math.prod(tensor.shape[1:])
        is_product = len(tensor.shape) > 1 and not tensor.name.endswith(TABLES)
        if module == name and is_product and columns % block:
            why = f"INT4 is stored in blocks of {block}, and {tensor.name} has rows of {columns}"
            raise UnsupportedError(f"{module}=int4", why, f"choose {module}=int8")
