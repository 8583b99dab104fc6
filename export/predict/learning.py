"""Predict the memory that a calibration learns in, and leave out what the budget has no room for."""

from __future__ import annotations

import math
from collections.abc import Iterator

from edgeglm.export.calibrate.learn import TRIED
from edgeglm.export.families.registry import module_of
from edgeglm.export.model import Choice
from edgeglm.export.prepare.header_checks import part_of
from edgeglm.export.prepare.types import Opened
from edgeglm.export.quantize.feedback import GROUP, TILE, tile_slices
from edgeglm.export.quantize.kept import is_kept
from edgeglm.export.quantize.schemes import Blocked, parse_scheme
from edgeglm.export.quantize.stream import CHUNK_BYTES, WORKERS

# Arrays of a tile in fp64 while it is turned into what feeds errors back.
COPIES = 6


def int4_widths(opened: Opened) -> list[int]:
    """Return the input channels that INT4 matrices have, each once, the widest first."""
    return sorted({columns for _, columns in _matrices(opened)}, reverse=True)


def learning_bytes(opened: Opened, widest: int) -> int:
    """Return what a calibration takes beside the samples, if matrices of up to `widest` input channels have feedback.

    The covariances are those of one part at a time. Matrices that read the same value count each for itself, since
    headers do not show it; those of one row count are taken to be few.
    """
    parts: dict[str, int] = {}
    for part, columns in _matrices(opened):
        tiles = [slot.stop - slot.start for slot in tile_slices(columns)] if columns <= widest else []
        parts[part] = parts.get(part, 0) + 4 * (TRIED * columns + sum(size * size for size in tiles))
    largest = min(TILE, max((columns for _, columns in _matrices(opened) if columns <= widest), default=0))
    making = COPIES * 8 * largest * largest
    encoding = WORKERS * (CHUNK_BYTES + CHUNK_BYTES // 4 + 6 * largest * largest + 8 * largest * GROUP)
    return max(max(parts.values(), default=0) + making, encoding if largest else 0)


def _matrices(opened: Opened) -> Iterator[tuple[str, int]]:
    """Yield the part and the columns of every matrix that is rounded to INT4 in a graph of ours."""
    choices = {choice.name: choice for choice in opened.choices if _is_ours(choice)}
    for tensor in opened.checkpoint.tensors.values():
        choice = choices.get(module_of(tensor.name)) if len(tensor.shape) > 1 else None
        if choice is None:
            continue
        part = part_of(tensor.name)
        scheme = parse_scheme(choice.precision_of(part))
        is_int4 = isinstance(scheme, Blocked) and scheme.bits == 4
        if is_int4 and not is_kept(tensor, scheme, choice.dialect):
            yield f"{choice.name}.{part}", math.prod(tensor.shape[1:])


def _is_ours(choice: Choice) -> bool:
    return choice.engine is not None and not choice.is_converted and not choice.kind.integers
