"""Keep the codes and scales of a checkpoint that is quantized already, where the stored form can hold them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from edgeglm.engines import DIALECTS, Dialect
from edgeglm.errors import DamagedFileError
from edgeglm.export.checkpoint.quantized.matrix import Matrix
from edgeglm.export.model import Choice
from edgeglm.export.quantize.rounding import Floats
from edgeglm.export.quantize.schemes import BLOCK_SIZES, Blocked, Int4, Int8, Int8Static, Scheme

# What holds groups of the commonest size as they are.
WIDE, WIDE_BLOCK = "int4-128", 128
UNSEEN = "their zero points, which are not here, let them"


@dataclass(frozen=True)
class Kept:
    """Rows as a checkpoint has quantized them, in blocks of `size` columns.

    Codes [n, K] less zero points, scales [n, blocks], zero points [n, blocks] counted from the lowest code.
    """

    codes: NDArray[np.int16]
    scales: Floats
    zeros: NDArray[np.uint8]
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
    if matrix.span is None:
        return f"{matrix.format} is no integer"
    scheme = _adapted(scheme, matrix, dialect)
    if matrix.blocks(_size(scheme, matrix.shape[1])) is None:
        return _why_blocks(matrix, scheme)
    if not _within(matrix.span, scheme):
        return "codes less their zero points reach from {} to {}".format(*matrix.span)
    if DIALECTS[dialect].is_plain and matrix.signed_scales:
        return "scales are below zero"
    return ""


def kept_scheme(scheme: Scheme, weights: Iterable[object], dialect: Dialect) -> Scheme:
    """Return the scheme of tensors that are stored as one, with the blocks and zero points of those that keep theirs.

    Args:
        scheme: What they are asked to be stored in.
        weights: Those of the checkpoint.
        dialect: Whose operators read them.
    """
    for weight in weights:
        if isinstance(weight, Matrix) and is_kept(weight, scheme, dialect):
            scheme = _adapted(scheme, weight, dialect)
    return scheme


def _adapted(scheme: Scheme, matrix: Matrix, dialect: Dialect) -> Scheme:
    """Return a scheme with smaller blocks where a matrix has such groups, and zero points where its codes need them."""
    if not isinstance(scheme, Blocked) or matrix.span is None:
        return scheme
    sizes = [size for size in BLOCK_SIZES if size <= scheme.block_size and matrix.blocks(size) is not None]
    scheme = replace(scheme, block_size=max(sizes, default=scheme.block_size))
    takes_zeros = scheme.bits == scheme.width and DIALECTS[dialect].contrib
    return replace(scheme, zero_points=(takes_zeros and not _within(matrix.span, scheme)) or scheme.zero_points)


def _within(span: tuple[int, int], scheme: Scheme) -> bool:
    """Return whether codes less their zero points have a place in a scheme."""
    bits, zero_points = (scheme.bits, scheme.zero_points) if isinstance(scheme, Blocked) else (8, False)
    lowest, highest = (1 - (1 << bits), (1 << bits) - 1) if zero_points else (-(1 << (bits - 1)), (1 << (bits - 1)) - 1)
    return lowest <= span[0] and span[1] <= highest


def _why_blocks(matrix: Matrix, scheme: Scheme) -> str:
    if not matrix.widths:
        return "columns are grouped in the order of their activations"
    extent = f"blocks have {BLOCK_SIZES[0]} at least" if isinstance(scheme, Blocked) else "a row has one scale"
    return f"groups have {max(matrix.widths)} columns, and {extent}"


def _size(scheme: Scheme, columns: int) -> int:
    return scheme.block_size if isinstance(scheme, Blocked) else columns


def read_kept(matrix: Matrix, stored: NDArray[np.uint8], scheme: Scheme) -> Kept:
    """Return whole rows that `Matrix.read` gave, for a scheme that can hold them."""
    size = _size(scheme, matrix.shape[1])
    codes, scales, zeros = matrix.integers(stored)
    groups = matrix.blocks(size)
    assert groups is not None
    return Kept(codes, scales[:, groups], zeros[:, groups].astype(np.uint8), size)


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
            is_narrow = isinstance(scheme, Int4) and scheme.block_size < WIDE_BLOCK
            wide += why == "" and is_narrow and weight.blocks(WIDE_BLOCK) is not None
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
