"""A Hugging Face checkpoint on disk: its config, where each weight lies, and the weights' rows, one read at a time.

Headers are checked before use, as strictly as the safetensors library does
(https://huggingface.co/docs/safetensors/index#format): tensors cover the data without hole or overlap.
"""

from __future__ import annotations

import json
import math
import os
import re
import reprlib
import stat
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeGuard, cast

import numpy as np
from numpy.typing import NDArray

from edgeglm.errors import DamagedFileError, UnsupportedError, UsageError

Dtype = Literal["F32", "F16", "BF16"]
ITEM_BYTES = {"F32": 4, "F16": 2, "BF16": 2}

# The safetensors library's own limit for a header; those of real models stay below 1 MB.
MAX_JSON_BYTES = 100_000_000
MAX_DIMENSIONS = 32
# Keeps every size within 64 bits, in numpy too, which multiplies the other extents of an empty tensor.
MAX_ELEMENTS = 1 << 60
MAX_NAME = 512
DTYPE_NAME = re.compile(r"[A-Z0-9_]{1,32}")
SHARD_NAME = re.compile(r"[\w.+ -]{1,200}\.safetensors")
# What follows "version " in a Git LFS pointer, a small text file in place of a large one.
LFS = b"https://git-lfs"
PICKLES = ("pytorch_model*.bin", "*.pt", "*.pth")
AGAIN = "download it again"
DIRECTORY = "give a directory with config.json and model.safetensors"


@dataclass(frozen=True)
class Tensor:
    """Where one tensor lies: ``nbytes`` bytes from ``offset`` in ``file``, row-major and little-endian."""

    name: str
    file: Path
    offset: int
    dtype: Dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """The size of the data in the file."""
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose headers have been checked; its files are open only while they are read.

    ``weights`` is ``model.safetensors`` or the index of its shards. ``foreign`` holds the dtypes of the tensors that
    edgeglm cannot read, which matter only when a model needs one of them.
    """

    folder: Path
    config: Mapping[str, Any]
    weights: Path
    tensors: Mapping[str, Tensor]
    foreign: Mapping[str, str]

    @classmethod
    def open(cls, folder: Path, *, headers_only: bool = False) -> Checkpoint:
        """Read the config and check every header, without reading a weight.

        ``headers_only`` allows files that end after their header, which is all that a plan needs.

        Raises:
            UsageError: The folder is none, holds no config or no weights, or cannot be read.
            UnsupportedError: The weights are pickled or already quantized.
            DamagedFileError: A file is truncated, malformed or missing, or contradicts another.
        """
        _check_folder(folder)
        config = _read_config(folder)
        weights, shards = _find_shards(folder, config)
        entries: dict[str, _Entry] = {}
        for file, indexed in shards.items():
            found = {entry.name: entry for entry in _read_header(file, headers_only=headers_only)}
            _check_shard(file, indexed, found, entries)
            entries |= found
        tensors = {name: entry.tensor() for name, entry in entries.items() if entry.dtype in ITEM_BYTES}
        foreign = {name: entry.dtype for name, entry in entries.items() if name not in tensors}
        return cls(folder, config, weights, tensors, foreign)

    @property
    def total_bytes(self) -> int:
        """The size in the files of all tensors that edgeglm can read."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    @property
    def architecture(self) -> str:
        """The transformers class that the config names."""
        name = _architecture(self.config)
        if name is None:
            remedy = "take one that transformers' save_pretrained wrote"
            raise UnsupportedError(self.folder / "config.json", "names no architecture", remedy)
        return name

    def check_architecture(self, supported: Iterable[str]) -> str:
        """The architecture, which must be one of those supported.

        Raises:
            UnsupportedError: It is another one; the message names those supported.
        """
        name, choices = self.architecture, list(supported)
        if name not in choices:
            why = f"the architecture {_shown(name)} is not supported"
            raise UnsupportedError(self.folder / "config.json", why, f"use one of {', '.join(choices)}")
        return name

    def sidecar(self, name: str) -> Path | None:
        """The path of a file beside the weights, such as ``tokenizer.json``, or None where there is none."""
        path = self.folder / name
        return path if path.is_file() else None

    def require(self, expected: Mapping[str, tuple[int, ...]]) -> None:
        """Check that every weight a model needs is there, readable and of the expected shape.

        Raises:
            DamagedFileError: One is missing or has another shape.
            UnsupportedError: One is stored in a dtype that edgeglm cannot read.
        """
        for name, shape in expected.items():
            tensor = self._find(name)
            if tensor.shape != tuple(shape):
                why = f"has shape {list(tensor.shape)} where config.json makes it {list(shape)}"
                raise DamagedFileError(f"{tensor.file}: {name}", why, "download both files again")

    def rows(self, name: str, start: int = 0, stop: int | None = None) -> NDArray[np.float32]:
        """Rows ``start`` to ``stop`` of the first axis, exactly, in C order; a scalar is one row.

        Raises:
            DamagedFileError: There is no such tensor, or its file has become shorter.
            UnsupportedError: It is stored in a dtype that edgeglm cannot read.
            IndexError: The tensor has no such rows.
        """
        tensor = self._find(name)
        values = _to_float32(self.read_bytes(name, start, stop), tensor.dtype)
        return values.reshape(len(_span(tensor, start, stop)), *tensor.shape[1:])

    def read_bytes(self, name: str, start: int = 0, stop: int | None = None) -> NDArray[np.uint8]:
        """The bytes of those rows as stored; the page cache lets go of them. Raises what `rows` raises."""
        tensor = self._find(name)
        span = _span(tensor, start, stop)
        row_bytes = math.prod(tensor.shape[1:]) * ITEM_BYTES[tensor.dtype]
        offset, size = tensor.offset + span.start * row_bytes, len(span) * row_bytes
        with _opened(tensor.file) as fd:
            data = _read(fd, offset, size)
            os.posix_fadvise(fd, offset, size, os.POSIX_FADV_DONTNEED)
        if len(data) < size:
            raise DamagedFileError(f"{tensor.file}: {name}", "is cut off by the end of the file", AGAIN)
        return data

    def _find(self, name: str) -> Tensor:
        where = f"{self.weights}: {name}"
        if name in self.foreign:
            why = f"is stored as {self.foreign[name]}"
            raise UnsupportedError(where, why, f"use a checkpoint in {', '.join(ITEM_BYTES)}")
        if name not in self.tensors:
            raise DamagedFileError(where, "is missing, and the model needs it", "download the whole checkpoint again")
        return self.tensors[name]


class _Entry(NamedTuple):
    """A tensor of a header; its first fields make entries sort as the data lies in the file."""

    begin: int
    end: int
    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path

    def tensor(self) -> Tensor:
        return Tensor(self.name, self.file, self.begin, cast(Dtype, self.dtype), self.shape)


def _span(tensor: Tensor, start: int, stop: int | None) -> range:
    rows = tensor.shape[0] if tensor.shape else 1
    span = range(start, rows if stop is None else stop)
    if not 0 <= span.start <= span.stop <= rows:
        raise IndexError(f"{tensor.name} has {rows} rows, not {start} to {stop}")
    return span


def _to_float32(raw: NDArray[np.uint8], dtype: Dtype) -> NDArray[np.float32]:
    if dtype == "BF16":
        # A bfloat16 is the upper half of the float32 of the same value.
        wide: NDArray[np.uint32] = np.left_shift(raw.view(np.uint16), 16, dtype=np.uint32)
        return wide.view(np.float32)
    return raw.view(np.float16 if dtype == "F16" else np.float32).astype(np.float32, copy=False)


def _architecture(config: Mapping[str, Any]) -> str | None:
    match config.get("architectures"):
        case [str(name), *_]:
            return name
    return None


def _check_folder(folder: Path) -> None:
    try:
        mode = folder.stat().st_mode
    except FileNotFoundError as error:
        raise UsageError(folder, "does not exist", DIRECTORY) from error
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise UsageError(folder, f"cannot be read: {why}", DIRECTORY) from error
    if not stat.S_ISDIR(mode):
        raise UsageError(folder, "is not a directory", DIRECTORY)


def _read_config(folder: Path) -> dict[str, Any]:
    file = folder / "config.json"
    if not os.path.lexists(file):
        raise UsageError(folder, "holds no config.json", DIRECTORY)
    config = _read_json(file)
    for part in (config, config.get("text_config")):
        if isinstance(part, dict) and part.get("quantization_config") is not None:
            raise UnsupportedError(file, "has a quantization_config", "use the original, unquantized checkpoint")
    return config


def _find_shards(folder: Path, config: Mapping[str, Any]) -> tuple[Path, dict[Path, set[str]]]:
    """Return what names the weights, and each file of weights with the names that the index gives it."""
    # One file goes before an index, as in transformers; lexists, so that a broken link is named as what is missing.
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if os.path.lexists(single):
        return single, {single: set()}
    if os.path.lexists(index):
        return index, _read_index(index)
    for pickle in sorted(path for pattern in PICKLES for path in folder.glob(pattern)):
        model = _architecture(config) or "AutoModel"
        remedy = f"convert it with transformers: {_shown(model)}.from_pretrained(DIR).save_pretrained(NEW_DIR)"
        raise UnsupportedError(pickle, "is a pickle, which can run code when it is read", remedy)
    raise UsageError(folder, f"holds neither {single.name} nor {index.name}", "download the whole checkpoint")


def _read_index(index: Path) -> dict[Path, set[str]]:
    mapping = _read_json(index).get("weight_map")
    if not isinstance(mapping, dict) or not mapping:
        raise DamagedFileError(index, "has no weight_map", AGAIN)
    shards: dict[Path, set[str]] = {}
    for name, shard in mapping.items():
        if not isinstance(shard, str) or not SHARD_NAME.fullmatch(shard):
            why = f"lies in {reprlib.repr(shard)}, which is no safetensors file of that folder"
            raise DamagedFileError(f"{index}: {_shown(name)}", why, AGAIN)
        shards.setdefault(index.parent / shard, set()).add(name)
    return dict(sorted(shards.items()))


def _check_shard(file: Path, indexed: set[str], found: Mapping[str, _Entry], others: Mapping[str, _Entry]) -> None:
    for name in sorted(indexed - found.keys()):
        why = "is not there, where the index has it"
        raise DamagedFileError(f"{file}: {_shown(name)}", why, "download both files again")
    for name in sorted(found.keys() & others.keys()):
        raise DamagedFileError(f"{file}: {name}", f"is in {others[name].file.name} too", "download both files again")


def _read_header(file: Path, *, headers_only: bool) -> list[_Entry]:
    """Return a file's tensors in the order of their data."""
    with _opened(file) as fd:
        size = os.fstat(fd).st_size
        data = 8 + _header_bytes(file, _read(fd, 0, 8 + len(LFS)).tobytes(), size)
        header = _parse(file, "header", _read(fd, 8, data - 8).tobytes())
    if not isinstance(header.pop("__metadata__", {}), dict):
        raise DamagedFileError(file, "its __metadata__ is not an object", AGAIN)
    entries = sorted(_parse_entry(file, data, name, value) for name, value in header.items())
    end = _check_contiguous(file, data, entries)
    if not headers_only:
        _check_extent(file, entries, end, size)
    return entries


def _header_bytes(file: Path, start: bytes, size: int) -> int:
    if start[8:] == LFS:
        raise DamagedFileError(file, "is a Git LFS pointer, not the file itself", "run git lfs pull there")
    length = int.from_bytes(start[:8], "little")
    if size < 8 or length > MAX_JSON_BYTES:
        raise DamagedFileError(file, "is not a safetensors file", AGAIN)
    if 8 + length > size:
        raise DamagedFileError(file, f"ends within its header, at {size} of {8 + length} bytes", AGAIN)
    return length


def _parse_entry(file: Path, data: int, name: str, value: object) -> _Entry:
    where = f"{file}: {_shown(name)}"
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
    return _Entry(data + begin, data + end, name, dtype, tuple(shape), file)


def _is_count(value: object) -> TypeGuard[int]:
    # Not isinstance, to which true and false are integers.
    return type(value) is int and 0 <= value <= MAX_ELEMENTS


def _is_shape(value: object) -> TypeGuard[list[int]]:
    if not isinstance(value, list) or len(value) > MAX_DIMENSIONS or not all(map(_is_count, value)):
        return False
    return math.prod(extent or 1 for extent in value) <= MAX_ELEMENTS


def _check_contiguous(file: Path, data: int, entries: Iterable[_Entry]) -> int:
    """Return where the last tensor ends."""
    end, before = data, "the header"
    for entry in entries:
        if entry.begin != end:
            how = "overlaps" if entry.begin < end else f"leaves {entry.begin - end} bytes unused after"
            raise DamagedFileError(f"{file}: {_shown(entry.name)}", f"{how} {before}", AGAIN)
        end, before = entry.end, _shown(entry.name)
    return end


def _check_extent(file: Path, entries: Iterable[_Entry], end: int, size: int) -> None:
    for entry in entries:
        if entry.end > size:
            why = f"is cut off, the file ends at {size} bytes and the tensor at {entry.end}"
            raise DamagedFileError(f"{file}: {_shown(entry.name)}", why, AGAIN)
    if size > end:
        raise DamagedFileError(file, f"has {size - end} bytes after its last tensor", AGAIN)


def _read_json(file: Path) -> dict[str, Any]:
    with _opened(file) as fd:
        size = os.fstat(fd).st_size
        if size > MAX_JSON_BYTES:
            raise DamagedFileError(file, f"has {size} bytes, too many for such a file", AGAIN)
        return _parse(file, "content", _read(fd, 0, size).tobytes())


def _parse(file: Path, what: str, text: bytes) -> dict[str, Any]:
    try:
        value = json.loads(text.decode("utf-8"), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise DamagedFileError(file, f"its {what} is not valid JSON: {error}", AGAIN) from error
    if not isinstance(value, dict):
        raise DamagedFileError(file, f"its {what} is not a JSON object", AGAIN)
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    unique = dict(pairs)
    if len(unique) < len(pairs):
        ((name, _),) = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"it has {_shown(name)} twice")
    return unique


def _shown(name: str) -> str:
    """Return a name as it is if a line of text can hold it."""
    return name if name.isprintable() and len(name) <= MAX_NAME else reprlib.repr(name)


@contextmanager
def _opened(file: Path) -> Iterator[int]:
    """Yield a descriptor of a regular file; what the system refuses meanwhile is one line to the user."""
    try:
        # Without O_NONBLOCK, opening a FIFO would wait for a writer.
        fd = os.open(file, os.O_RDONLY | os.O_NONBLOCK)
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise DamagedFileError(file, "is not a regular file", AGAIN)
            yield fd
        finally:
            os.close(fd)
    except FileNotFoundError as error:
        raise DamagedFileError(file, "is missing, or a link to nothing", AGAIN) from error
    except OSError as error:
        raise UsageError(file, f"cannot be read: {error.strerror}", "make it readable") from error


def _read(fd: int, offset: int, size: int) -> NDArray[np.uint8]:
    """Return the bytes at an offset, fewer where the file ends before."""
    data = np.empty(size, np.uint8)
    done = 0
    # One call reads 2 GiB at most on Linux.
    while count := os.preadv(fd, [data.data[done:]], offset + done):
        done += count
    return data[:done]
