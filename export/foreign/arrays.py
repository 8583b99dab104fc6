"""Samples of a graph's inputs: ``.npz`` files with an array for each input, or made-up numbers where there are none."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeglm.errors import UsageError
from edgeglm.export.foreign.graph_file import Input
from edgeglm.files import opened
from edgeglm.units import format_size

SUFFIX = ".npz"
MAX_BYTES = 1 << 30  # of all samples, which are in memory together
FORM = f"give a {SUFFIX} file, or a folder of them, with one array for each input"
LESS = f"give fewer samples, up to {format_size(MAX_BYTES)} of them"
ARRAY = b"\x93NUMPY"  # how a file of a single array begins (numpy.lib.format)
MADE_UP = 4  # samples, where none are given
Arrays = Mapping[str, NDArray[Any]]


def read_samples(path: Path, inputs: Sequence[Input]) -> list[Arrays]:
    """Return the samples of a file, or of all files of a folder in the order of their names.

    Raises:
        UsageError: There are none, one cannot be read, or one does not fit the inputs.
    """
    files = sorted(path.glob(f"*{SUFFIX}")) if path.is_dir() else [path]
    if not files:
        raise UsageError(path, f"has no {SUFFIX} file in it", FORM)
    samples: list[Arrays] = []
    room = MAX_BYTES
    for file in files:
        samples.append(_checked(file, _read(file, room), inputs))
        room -= sum(array.nbytes for array in samples[-1].values())
    return samples


def make_samples(inputs: Sequence[Input]) -> list[Arrays]:
    """Return normal numbers, ones where they are whole, the same each time; what varies has the size 1."""
    random = np.random.default_rng(0)
    return [{wanted.name: _made_up(wanted, random) for wanted in inputs} for _ in range(MADE_UP)]


def common_shapes(samples: Sequence[Arrays]) -> dict[str, tuple[int, ...]]:
    """Return the shape of each input, of those that have the same in all samples."""
    first = {name: array.shape for name, array in samples[0].items()}
    return {name: shape for name, shape in first.items() if all(sample[name].shape == shape for sample in samples)}


def hash_samples(samples: Sequence[Arrays]) -> str:
    """Hash names, types, shapes and bytes of all samples in their order."""
    digest = sha256()
    for sample in samples:
        for name, array in sorted(sample.items()):
            digest.update(f"{name} {array.dtype.str} {list(array.shape)}\n".encode())
            digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def _read(file: Path, room: int) -> dict[str, NDArray[Any]]:
    """Return the arrays of a file that take no more than `room` bytes."""
    with opened(file, FORM) as stream:
        start = stream.read(len(ARRAY))
        if start == ARRAY:
            raise UsageError(file, f"is one array, not a {SUFFIX} file of several by name", FORM)
        try:
            with zipfile.ZipFile(stream) as archive:
                size = sum(member.file_size for member in archive.infolist())
                if size > room:
                    raise UsageError(file, f"takes {format_size(size)}, where {format_size(room)} are left", LESS)
            stream.seek(0)
            with np.load(stream, allow_pickle=False) as arrays:
                return {name: arrays[name] for name in arrays.files}
        except (ValueError, EOFError, KeyError, NotImplementedError, zipfile.BadZipFile, zlib.error) as error:
            raise UsageError(file, f"is no {SUFFIX} file", FORM) from error
        except MemoryError as error:
            raise UsageError(file, "has an array that is larger than memory", LESS) from error


def _checked(file: Path, arrays: dict[str, NDArray[Any]], inputs: Sequence[Input]) -> Arrays:
    names = [wanted.name for wanted in inputs]
    for name in sorted(arrays.keys() ^ set(names)):
        why = f"has no array {name}" if name in names else f"has an array {name}, which is no input of the graph"
        raise UsageError(file, why, f"give one array for each of {', '.join(names)}")
    return {wanted.name: _fitted(file, arrays[wanted.name], wanted) for wanted in inputs}


def _fitted(file: Path, array: NDArray[Any], wanted: Input) -> NDArray[Any]:
    if len(array.shape) != len(wanted.shape) or any(
        isinstance(size, int) and size != found for size, found in zip(wanted.shape, array.shape, strict=True)
    ):
        why = f"{wanted.name} has the shape {_sizes(array.shape)}, and the graph takes {_sizes(wanted.shape)}"
        raise UsageError(file, why, "give arrays of the input's shape")
    if not array.size:
        raise UsageError(file, f"{wanted.name} is empty", "give arrays with values")
    if array.dtype.kind != wanted.dtype.kind:
        why = f"{wanted.name} is {array.dtype}, and the graph takes {wanted.dtype}"
        raise UsageError(file, why, "give arrays of the input's type")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise UsageError(file, f"{wanted.name} has values that are not finite", "leave such samples out")
    return array.astype(wanted.dtype, copy=False)


def _sizes(shape: Sequence[int | str]) -> str:
    return f"[{', '.join(map(str, shape))}]"


def _made_up(wanted: Input, random: np.random.Generator) -> NDArray[Any]:
    shape = [size if isinstance(size, int) else 1 for size in wanted.shape]
    if wanted.dtype.kind == "f":
        return random.standard_normal(shape).astype(wanted.dtype)
    return np.ones(shape, wanted.dtype)
