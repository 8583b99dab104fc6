"""The arguments that `export`, `plan` and `search` share."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

import click

# Before numpy is loaded: encoders and proofs have threads of their own, which those of a product would only disturb.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from edgeglm.export.choose.picture import parse_image_size
from edgeglm.export.model import KvType

F = TypeVar("F", bound=Callable[..., Any])

calibration_option = click.option(
    "--calibration",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Samples (.jsonl) or a text to calibrate with (default: the demo's, for the demo).",
)


def checkpoint_options(function: F) -> F:
    """Add MODEL, --target and what decides how the modules are made."""
    precision = click.option(
        "--precision",
        default="auto",
        metavar="SPEC",
        help="auto (the profile's), fp32, fp16, int8, int4, or by module: decoder=int4,vision=fp16.",
    )
    return model_options(precision(function))


def model_options(function: F) -> F:
    """Add MODEL, --target and what decides how the modules are made, but for the precision."""
    for decorator in (
        click.option(
            "--image-size",
            multiple=True,
            metavar="WxH",
            help="Image size of the vision module in pixels, such as 504x1008; once for each shape.",
        ),
        click.option(
            "--prefix",
            "prefixes",
            type=click.Path(path_type=Path),
            multiple=True,
            metavar="FILE",
            help="A system prompt as text, or messages as .json, whose state the bundle ships; once for each.",
        ),
        click.option(
            "--kv",
            type=click.Choice(get_args(KvType)),
            default="fp32",
            show_default=True,
            help="What keys and values are stored in; fp16 takes half of the memory, on ONNX Runtime alone.",
        ),
        click.option("--adapter", metavar="DIR", help="A LoRA adapter of peft to merge into the weights."),
        click.option("--context", type=click.IntRange(min=1), metavar="N", help="Maximum context length in tokens."),
        click.option("--target", required=True, metavar="NAME", help="Device profile: a name or the path of a file."),
        click.argument("model", required=False),
    ):
        function = decorator(function)
    return function


def image_sizes(texts: Sequence[str]) -> tuple[tuple[int, int], ...]:
    """Return the sizes of ``--image-size``. Raises UsageError for a wrong one."""
    return tuple(map(parse_image_size, texts))
