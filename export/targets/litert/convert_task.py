"""Task and result of the converting worker."""

from __future__ import annotations

from dataclasses import dataclass, field

from edgeglm.export.model import Grid
from edgeglm.roles import ModuleName


@dataclass(frozen=True)
class Span:
    """The blocks and ends in one of a module's files, where a single file would be too large."""

    start: int
    stop: int
    front: bool
    back: bool

    @property
    def layers(self) -> range:
        """The blocks."""
        return range(self.start, self.stop)


@dataclass(frozen=True)
class Task:
    """A module to convert.

    Args:
        checkpoint: Its folder.
        module: ``vision`` or ``decoder``.
        precision: Of all of it.
        tried: What that can mean of a vision module; what is nearest to fp32 on the pictures is taken.
        context: Tokens of the decoder's buffers.
        chunk: Tokens of a prefill.
        grid: Patches of the picture.
        files: What to write, in the order of computation, and what each holds.
        pictures: A ``.npy`` of patches (pictures, count, values) that ranges are taken from, if there are any.
        adapter: The folder of an adapter that is merged into the weights, if one is.
    """

    checkpoint: str
    module: ModuleName
    precision: str
    tried: tuple[str, ...]
    context: int
    chunk: int
    grid: Grid | None
    files: dict[str, Span]
    pictures: str | None = None
    adapter: str | None = None


@dataclass(frozen=True)
class Report:
    """The hashes of the checkpoint's tensors by name, and the precision.

    ``errors`` are those of the precisions that were tried, relative to fp32, where there was a choice; the first of the
    least is taken.
    """

    sha256: dict[str, str]
    precision: str
    errors: dict[str, float] = field(default_factory=dict)
