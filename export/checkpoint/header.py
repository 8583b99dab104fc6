"""The header of a safetensors file, checked before use, as strictly as the safetensors library does.

Tensors must cover the data without hole or overlap (https://huggingface.co/docs/safetensors/index#format).
"""

from __future__ import annotations

import math
import os
import re
import reprlib
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple, TypeGuard

from edgeglm.errors import DamagedFileError
from edgeglm.export.checkpoint.files import AGAIN, MAX_JSON_BYTES, opened, parse, read, shown
from edgeglm.units import format_size

# Of the dtypes that weights are stored as, and their scales, zero points and packed numbers.
ITEM_BYTES = {"F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I8": 1, "U8": 1}
ITEM_BYTES |= {"F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1}

LIBRARY_BYTES = 100_000_000  # the safetensors library's own limit for a header
MAX_DIMENSIONS = 32
# Keeps every size within 64 bits, in numpy too, which multiplies the other extents of an empty tensor.
MAX_ELEMENTS = 1 << 60
DTYPE_NAME = re.compile(r"[A-Z0-9_]{1,32}")
# What follows "version " in a Git LFS pointer, a small text file in place of a large one.
LFS = b"https://git-lfs"


class Entry(NamedTuple):
    """A tensor of a header; its first fields make entries sort as the data lies in the file."""

    begin: int
    end: int
    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path


def read_header(file: Path, *, headers_only: bool, limit: int = MAX_JSON_BYTES) -> list[Entry]:
    """Return a file's tensors in the order of their data; `limit` is that of the header's bytes."""
    with opened(file) as fd:
        size = os.fstat(fd).st_size
        data = 8 + _header_bytes(file, read(fd, 0, 8 + len(LFS)).tobytes(), size, limit)
        header = parse(file, "header", read(fd, 8, data - 8).tobytes())
    if not isinstance(header.pop("__metadata__", {}), dict):
        raise DamagedFileError(file, "its __metadata__ is not an object", AGAIN)
    entries = sorted(_parse_entry(file, data, name, value) for name, value in header.items())
    end = _check_contiguous(file, data, entries)
    if not headers_only:
        _check_extent(file, entries, end, size)
    return entries


def _header_bytes(file: Path, start: bytes, size: int, limit: int) -> int:
    if start[8:] == LFS:
        raise DamagedFileError(file, "is a Git LFS pointer, not the file itself", "run git lfs pull there")
    length = int.from_bytes(start[:8], "little")
    if size < 8 or length > LIBRARY_BYTES:
        raise DamagedFileError(file, "is not a safetensors file", AGAIN)
    if 8 + length > size:
        raise DamagedFileError(file, f"ends within its header, at {size} of {8 + length} bytes", AGAIN)
    if length > limit:
        why = f"has a header of {format_size(length)}, and up to {format_size(MAX_JSON_BYTES)} of headers are read"
        raise DamagedFileError(file, why, "take a checkpoint that transformers' save_pretrained wrote")
    return length


def _parse_entry(file: Path, data: int, name: str, value: object) -> Entry:
    where = f"{file}: {shown(name)}"
    match value:
        case {"dtype": str(dtype), "shape": shape, "data_offsets": [begin, end]}:
            pass
        case _:
            raise DamagedFileError(where, "lacks a dtype, a shape or two data_offsets", AGAIN)
    if not DTYPE_NAME.fullmatch(dtype):
        raise DamagedFileError(where, f"has dtype {reprlib.repr(dtype)}", AGAIN)
    if not _is_shape(shape):
        raise DamagedFileError(where, f"has shape {reprlib.repr(shape)}", AGAIN)
    if not _is_count(begin) or not _is_count(end) or begin > end:
        raise DamagedFileError(where, f"has data_offsets {reprlib.repr([begin, end])}", AGAIN)
    size, needed = end - begin, math.prod(shape) * ITEM_BYTES.get(dtype, 0)
    if dtype in ITEM_BYTES and size != needed:
        raise DamagedFileError(where, f"has {size} bytes where {dtype} of shape {shape} takes {needed}", AGAIN)
    return Entry(data + begin, data + end, name, dtype, tuple(shape), file)


def _is_count(value: object) -> TypeGuard[int]:
    # Not isinstance, to which true and false are integers.
    return type(value) is int and 0 <= value <= MAX_ELEMENTS


def _is_shape(value: object) -> TypeGuard[list[int]]:
    if not isinstance(value, list) or len(value) > MAX_DIMENSIONS or not all(map(_is_count, value)):
        return False
    return math.prod(extent or 1 for extent in value) <= MAX_ELEMENTS


def _check_contiguous(file: Path, data: int, entries: Iterable[Entry]) -> int:
    """Return where the last tensor ends."""
    end, before = data, "the header"
    for entry in entries:
        if entry.begin != end:
            how = "overlaps" if entry.begin < end else f"leaves {entry.begin - end} bytes unused after"
            raise DamagedFileError(f"{file}: {shown(entry.name)}", f"{how} {before}", AGAIN)
        end, before = entry.end, shown(entry.name)
    return end


def _check_extent(file: Path, entries: Iterable[Entry], end: int, size: int) -> None:
    for entry in entries:
        if entry.end > size:
            why = f"is cut off, the file ends at {size} bytes and the tensor at {entry.end}"
            raise DamagedFileError(f"{file}: {shown(entry.name)}", why, AGAIN)
    if size > end:
        raise DamagedFileError(file, f"has {size - end} bytes after its last tensor", AGAIN)
