"""Rates of ``--prune``, and what they leave of each stack."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from edgeglm.errors import UnsupportedError, UsageError
from edgeglm.export.checkpoint.reader import Checkpoint
from edgeglm.export.compress.parts import Part, Units
from edgeglm.roles import DECODER
from edgeglm.units import parse_percent

KINDS = ("mlp", "heads", "layers")
WRITE = "write 40%, or some of mlp=50%,heads=50%,layers=1"
# Widths stay multiples of this, or of what they had: kernels and blocks of INT4 want it.
STEP = 32


@dataclass(frozen=True)
class Rates:
    """The share of a block's parameters that goes, or shares of channels and groups of heads; and layers.

    Args:
        share: Of a block's parameters: channels and heads that are chosen so; None where others are given.
        mlp: Of the channels.
        heads: Of the groups.
        layers: How many layers, or their share where that is less than one.
        text: As it was given.
    """

    share: float | None
    mlp: float
    heads: float
    layers: float
    text: str


@dataclass(frozen=True)
class Left:
    """Sizes that stay of a stack: blocks, and of each channels and groups of heads."""

    layers: int
    width: int
    groups: int


def parse_rates(text: str) -> Rates:
    """Return the rates of ``--prune``. Raises UsageError."""
    given: dict[str, float] = {}
    if "=" not in text:
        given["share"] = _rate(text, text)
    for item in text.split(",") if "=" in text else ():
        kind, _, value = (piece.strip() for piece in item.partition("="))
        if kind not in KINDS:
            raise UsageError(f"--prune {text}", f"{kind or 'an empty name'} is not one of {', '.join(KINDS)}", WRITE)
        if kind in given:
            raise UsageError(f"--prune {text}", f"has {kind} twice", WRITE)
        counted = kind == "layers" and value.isdecimal()
        given[kind] = float(value) if counted else _rate(value, text)
    if not any(given.values()):
        raise UsageError(f"--prune {text}", "removes nothing", WRITE)
    share = given.get("share")
    return Rates(share, given.get("mlp", 0.0), given.get("heads", 0.0), given.get("layers", 0.0), text)


def _rate(value: str, text: str) -> float:
    try:
        return parse_percent(value)
    except UsageError as error:
        raise UsageError(f"--prune {text}", f"{error.what} {error.why}", WRITE) from error


def plan_parts(parts: Sequence[Part], rates: Rates, checkpoint: Checkpoint) -> dict[Part, Left]:
    """Return what the rates leave of each stack.

    A share is one of all blocks together: towers whose config cannot state another width lose whole layers, and the
    MLPs of the others make up for the rest.

    Args:
        parts: The stacks.
        rates: Of ``--prune``.
        checkpoint: The original.

    Raises:
        UsageError: Less than one layer, head or step of channels would be left.
        UnsupportedError: Heads are to go where transformers' config could not say so.
    """
    if rates.share is None:
        plan = {part: _plan_named(part, rates, checkpoint) for part in parts}
    else:
        plan = _plan_share(parts, rates.share, checkpoint)
    for part, left in plan.items():
        _check(part, left, rates)
    if plan == whole(parts):
        raise UsageError(f"--prune {rates.text}", "rounds to nothing that could go", "give a higher rate")
    return plan


def whole(parts: Sequence[Part]) -> dict[Part, Left]:
    """Return a plan of which nothing goes."""
    return {part: Left(part.layers, part.width, part.groups) for part in parts}


def _plan_share(parts: Sequence[Part], share: float, checkpoint: Checkpoint) -> dict[Part, Left]:
    sizes = {part: part.layers * block_parameters(part, checkpoint) for part in parts}
    narrow = [part for part in parts if part.in_blocks]
    plan, gone = {}, 0.0
    for part in parts:
        if part not in narrow:
            layers = math.floor(share * part.layers)
            plan[part] = Left(part.layers - layers, _stepped(part, part.width * (1 - share)), part.groups)
            gone += sizes[part] * layers / part.layers
    rest = (share * sum(sizes.values()) - gone) / sum(sizes[part] for part in narrow)
    for part in narrow:
        groups = math.floor(share * part.groups)
        width = part.width - _channels(part, checkpoint, rest, groups)
        plan[part] = Left(part.layers, _stepped(part, width), part.groups - groups)
    return {part: plan[part] for part in parts}


def _plan_named(part: Part, rates: Rates, checkpoint: Checkpoint) -> Left:
    if rates.heads and part.module == DECODER and not part.groups:
        why = f"transformers' class of {checkpoint.architecture} derives a head's size from the number of heads"
        raise UnsupportedError(f"--prune {rates.text}", why, "leave heads out")
    layers = rates.layers if rates.layers >= 1 else math.floor(rates.layers * part.layers)
    groups = math.floor(rates.heads * part.groups)
    return Left(part.layers - int(layers), _stepped(part, part.width * (1 - rates.mlp)), part.groups - groups)


def _stepped(part: Part, width: float) -> int:
    """Return the width that is no larger, and a multiple of what its kernels like; the old one is fine."""
    step = math.gcd(part.width, STEP)
    return math.floor(round(width, 6)) // step * step if width < part.width else part.width


def _channels(part: Part, checkpoint: Checkpoint, share: float, groups: int) -> float:
    """Return how many channels go, so that a block loses its share beside so many groups."""
    prefix = part.prefix(0)
    gone = groups * Units(part, "groups", prefix).parameters(checkpoint) if groups else 0
    one = Units(part, "channels", prefix).parameters(checkpoint)
    return max(0.0, (share * block_parameters(part, checkpoint) - gone) / one)


def block_parameters(part: Part, checkpoint: Checkpoint) -> int:
    """Return the weights of one block."""
    prefix = part.prefix(0)
    return sum(math.prod(tensor.shape) for name, tensor in checkpoint.tensors.items() if name.startswith(prefix))


def _check(part: Part, left: Left, rates: Rates) -> None:
    what, step = None, math.gcd(part.width, STEP)
    if left.layers < 1:
        what = f"none of the {part.layers} layers"
    elif part.groups and left.groups < 1:
        what = f"none of the {part.groups} groups of heads"
    elif part.width and left.width < step:
        what = f"fewer than {step} of the {part.width} MLP channels"
    if what:
        raise UsageError(f"--prune {rates.text}", f"would leave {what} of the {part.module}", "give a lower rate")
