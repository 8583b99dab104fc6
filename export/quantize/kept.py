"""Keep the codes and scales of a checkpoint that is quantized already, where the stored form can hold them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgeglm.engines import DIALECTS, Dialect
from edgeglm.errors import DamagedFileError
from edgeglm.export.checkpoint.quantized.matrix import Matrix
from edgeglm.export.model import Choice
from edgeglm.export.quantize.rounding import Floats
from edgeglm.export.quantize.schemes import Blocked, Int4, Int8, Int8Static, Scheme

# What holds groups of the commonest size as they are.
WIDE, WIDE_BLOCK = "int4-128", 128
UNSEEN = "their zero points, which are not here, let them"


@dataclass(frozen=True)
class Kept:
    """Rows as a checkpoint has quantized them: codes [n, K] less zero points, scales [n, blocks] of `size` columns."""

    codes: NDArray[np.int8]
    scales: Floats
    size: int

    @property
    def values(self) -> Floats:
        """The numbers that they stand for: [n, K]."""
        values: Floats = self.codes * np.repeat(self.scales, self.size, axis=1)[:, : self.codes.shape[1]]
        return values


def is_kept(weight: object, scheme: Scheme, dialect: Dialect) -> bool:
    """Return whether a weight of a checkpoint keeps its codes in a scheme; what cannot be read does not."""
    if not isinstance(weight, Matrix):
        return False
    try:
        return why_rounded(weight, scheme, dialect) == ""
    except DamagedFileError:  # in a plan from the headers; else its rows cannot be read either
        return False


def why_rounded(matrix: Matrix, scheme: Scheme, dialect: Dialect) -> str | None:
    """Return why a scheme cannot hold a matrix's own codes: nothing if it can, None if it rounds to no codes.

    Args:
        matrix: Of a quantized checkpoint.
        scheme: What the matrix is to be stored in.
        dialect: Whose operators read it.

    Raises:
        DamagedFileError: Its zero points, scales or groups cannot be read.
    """
    if DIALECTS[dialect].integers:
        return "an NPU takes codes of its own"
    if not isinstance(scheme, Blocked | Int8 | Int8Static):
        return None
    size, bits = _size(scheme, matrix.shape[1]), scheme.bits if isinstance(scheme, Blocked) else 8
    if matrix.span is None:
        return f"{matrix.format} is no integer"
    if matrix.blocks(size) is None:
        return _why_blocks(matrix, scheme)
    lowest, highest = matrix.span
    if lowest < -(1 << (bits - 1)) or highest >= 1 << (bits - 1):
        return f"codes less their zero points reach from {lowest} to {highest}"
    if DIALECTS[dialect].is_plain and matrix.signed_scales:
        return "scales are below zero"
    return ""


def _why_blocks(matrix: Matrix, scheme: Scheme) -> str:
    if not matrix.widths:
        return "columns are grouped in the order of their activations"
    extent = f"blocks have {scheme.block_size}" if isinstance(scheme, Blocked) else "a row has one scale"
    return f"groups have {max(matrix.widths)} columns, and {extent}"


def _size(scheme: Scheme, columns: int) -> int:
    return scheme.block_size if isinstance(scheme, Blocked) else columns


def read_kept(matrix: Matrix, stored: NDArray[np.uint8], scheme: Scheme) -> Kept:
    """Return whole rows that `Matrix.read` gave, for a scheme that can hold them."""
    size = _size(scheme, matrix.shape[1])
    codes, scales = matrix.integers(stored)
    groups = matrix.blocks(size)
    assert groups is not None
    return Kept(codes.astype(np.int8), scales[:, groups], size)


def describe_kept(choice: Choice, weights: Iterable[tuple[object, Scheme]]) -> str | None:
    """Return a line on a module's quantized matrices: how many keep their codes, and why the others do not.

    Args:
        choice: Of the module.
        weights: Those of the checkpoint, and what each is stored in.
    """
    reasons: Counter[str] = Counter()
    wide = 0
    for weight, scheme in weights:
        if isinstance(weight, Matrix) and not choice.is_table:
            why = _why_of(choice, weight, scheme)
            reasons.update([why] if why is not None else [])
            wide += why == "" and scheme == Int4() and weight.blocks(WIDE_BLOCK) is not None
    unseen = reasons.pop(UNSEEN, 0)
    total, kept = reasons.total(), reasons.pop("", 0)
    lines = [f"{kept} of {total} quantized matrices keep the checkpoint's codes and scales"] if total else []
    lines += [f"and {WIDE} holds the same in fewer bytes, and is faster"] if kept and wide == kept else []
    if reasons:
        others = "; ".join(f"{why} ({count})" for why, count in reasons.most_common())
        lines.append(f"{total - kept} are rounded again: {others}")
    lines += [f"{unseen} quantized matrices keep their codes if {UNSEEN}"] if unseen else []
    return f"{choice.name}: {', '.join(lines)}" if lines else None


def _why_of(choice: Choice, matrix: Matrix, scheme: Scheme) -> str | None:
    if choice.is_converted:
        return "a converter rounds them"
    try:
        return why_rounded(matrix, scheme, choice.dialect)
    except DamagedFileError:  # in a plan from the headers
        return UNSEEN
