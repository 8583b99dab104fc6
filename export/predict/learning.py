"""Predict the memory and the disk that a calibration learns in, and leave out what the budget has no room for."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

from edgeglm.export.calibrate.learn import TRIED, Learner
from edgeglm.export.calibrate.products import WORKER_BYTES, is_fast_in_bf16
from edgeglm.export.families.registry import module_of
from edgeglm.export.graph.assemble import segments, stack_of
from edgeglm.export.model import Choice
from edgeglm.export.prepare.header_checks import part_of
from edgeglm.export.prepare.types import Opened, Prepared
from edgeglm.export.quantize.feedback import GROUP, TILE, tile_bytes, tile_slices
from edgeglm.export.quantize.kept import is_kept
from edgeglm.export.quantize.schemes import Blocked, parse_scheme
from edgeglm.export.quantize.stream import CHUNK_BYTES, WORKERS
from edgeglm.export.write.disk import check_free
from edgeglm.units import format_size

# Arrays of a tile in fp64 while it is turned into what feeds errors back.
COPIES = 6


def int4_widths(opened: Opened) -> list[int]:
    """Return the input channels that INT4 matrices have, each once, the widest first."""
    return sorted({columns for _, columns in _matrices(opened)}, reverse=True)


def worker_bytes(opened: Opened) -> int:
    """Return what the worker that multiplies in bf16 takes; zero for a model without a matrix for it."""
    tensors = opened.checkpoint.tensors.values()
    return WORKER_BYTES if any(is_fast_in_bf16(tensor) for tensor in tensors) else 0


def learning_bytes(opened: Opened, widest: int, worker: int = 0) -> int:
    """Return what a calibration takes beside the samples, if matrices of up to `widest` input channels have feedback.

    The covariances are those of one part at a time. Matrices that read the same value count each for itself, since
    headers do not show it; those of one row count are taken to be few.

    Args:
        opened: The export.
        widest: See above.
        worker: Bytes of a process that multiplies while it learns.
    """
    parts: dict[str, int] = {}
    for part, columns in _matrices(opened):
        tiles = [slot.stop - slot.start for slot in tile_slices(columns)] if columns <= widest else []
        parts[part] = parts.get(part, 0) + 4 * (TRIED * columns + sum(size * size for size in tiles))
    largest = min(TILE, max((columns for _, columns in _matrices(opened) if columns <= widest), default=0))
    making = COPIES * 8 * largest * largest
    encoding = WORKERS * (CHUNK_BYTES + CHUNK_BYTES // 4 + 6 * largest * largest + 8 * largest * GROUP)
    return max(max(parts.values(), default=0) + making + worker, encoding if largest else 0)


def feedback_bytes(prepared: Prepared, widest: int) -> int:
    """Return the bytes of the file that a calibration keeps what errors are fed back by in, as long as it is needed.

    Args:
        prepared: The export.
        widest: Most input channels of a matrix that has feedback.
    """
    source, total = prepared.checkpoint, 0
    learner = Learner({choice.name: choice for choice in prepared.opened.choices}, source, None, (), widest)
    for module in (choice.name for choice in prepared.opened.choices if choice.is_image or choice.is_decoder):
        for part, model in segments(stack_of(module, prepared.probe), "portable"):
            learner.begin(module, part, model.graph)
            values = {value: math.prod(source.find(name).shape[1:]) for name, value in learner.values.items()}
            widths = [columns for columns in values.values() if learner.has_feedback and columns <= widest]
            total += sum(tile_bytes(tile.stop - tile.start) for columns in widths for tile in tile_slices(columns))
    return total


def check_disk(prepared: Prepared, widest: int, folder: Path) -> None:
    """Raise BudgetError where the disk of a folder has no room for `feedback_bytes`."""
    need = feedback_bytes(prepared, widest)
    check_free(
        folder, need, "--calibration", f"set TMPDIR to a folder with {format_size(need)}, or give no --calibration"
    )


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
