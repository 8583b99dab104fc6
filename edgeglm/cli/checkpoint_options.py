"""The arguments that `export` and `plan` share."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import click

# Before numpy is loaded: encoders and proofs have threads of their own, which those of a product would only disturb.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from edgeglm.devices.loader import load_profile
from edgeglm.devices.profile import Profile
from edgeglm.export.checkpoint.reader import Checkpoint
from edgeglm.export.locate import locate, locate_headers
from edgeglm.export.picture import parse_image_size
from edgeglm.export.pipeline.prepared import Request

F = TypeVar("F", bound=Callable[..., Any])


def checkpoint_options(function: F) -> F:
    """Add MODEL, --target and what decides how the modules are made."""
    for decorator in (
        click.option(
            "--image-size",
            multiple=True,
            metavar="WxH",
            help="Image size of the vision module in pixels, such as 504x1008; once for each shape.",
        ),
        click.option("--adapter", metavar="DIR", help="A LoRA adapter of peft to merge into the weights."),
        click.option("--context", type=click.IntRange(min=1), metavar="N", help="Maximum context length in tokens."),
        click.option(
            "--precision",
            default="auto",
            metavar="SPEC",
            help="auto (the profile's), fp32, fp16, int8, int4, or by module: decoder=int4,vision=fp16.",
        ),
        click.option("--target", required=True, metavar="NAME", help="Device profile: a name or the path of a file."),
        click.argument("model", required=False),
    ):
        function = decorator(function)
    return function


def to_request(
    model: str | None, target: str, precision: str, context: int | None, image_size: Sequence[str], adapter: str | None
) -> Request:
    """Return what the options ask of the exporter. Raises UsageError for a wrong one."""
    profile, sizes = _parse(target, image_size)
    folder, name = locate(model)
    if model == name and not any(folder.glob("*.safetensors")):
        with locate_headers(model) as (names, _):  # which has the names of all files of a repository
            Checkpoint.open(names, headers_only=True)
    return Request(folder, name, profile, precision, context, sizes, model is None, adapter=_folder(adapter))


@contextmanager
def to_plan(
    model: str | None, target: str, precision: str, context: int | None, image_size: Sequence[str], adapter: str | None
) -> Iterator[Request]:
    """Open a checkpoint for its headers alone: no weight of a model on the hub is downloaded."""
    profile, sizes = _parse(target, image_size)
    with locate_headers(model) as (folder, name):
        yield Request(folder, name, profile, precision, context, sizes, model is None, adapter=_folder(adapter))


def _parse(target: str, image_size: Sequence[str]) -> tuple[Profile, tuple[tuple[int, int], ...]]:
    return load_profile(target), tuple(dict.fromkeys(map(parse_image_size, image_size)))


def _folder(adapter: str | None) -> Path | None:
    return None if adapter is None else locate(adapter)[0]
