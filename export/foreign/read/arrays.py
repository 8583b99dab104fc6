"""Samples of a graph's inputs: ``.npz`` files with an array for each input, or made-up numbers where there are none."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterable, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeglm.errors import UsageError
from edgeglm.export.checkpoint.files import POINTER, refuse_pointer
from edgeglm.export.foreign.read.graph_file import Input
from edgeglm.files import opened
from edgeglm.units import format_size

SUFFIX = ".npz"
MAX_BYTES = 1 << 30  # of a sample; they are read one at a time
FORM = f"give a {SUFFIX} file, or a folder of them, with one array for each input"
LESS = f"give samples of up to {format_size(MAX_BYTES)}"
ARRAY = b"\x93NUMPY"  # how a file of a single array begins (numpy.lib.format)
MADE_UP = 4  # samples, where none are given
Arrays = Mapping[str, NDArray[Any]]


class SampleFiles(Sequence[Arrays]):
    """Samples in files, each of which is read when it is asked for.

    Args:
        path: A file, or a folder of which all files are taken in the order of their names.
        inputs: Of the graph.
        finite: Whether all values must be, as those must that ranges are taken of.

    Raises:
        UsageError: There are none, one cannot be read, or one does not fit the inputs.
    """

    def __init__(self, path: Path, inputs: Sequence[Input], *, finite: bool) -> None:
        self._inputs, self._finite = inputs, finite
        self._files = sorted(path.glob(f"*{SUFFIX}")) if path.is_dir() else [path]
        if not self._files:
            raise UsageError(path, f"has no {SUFFIX} file in it", FORM)
        for _ in self:  # all are read before anything is written
            pass

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: Any) -> Any:  # noqa: ANN401
        """Return a sample, or those of a slice."""
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        file = self._files[index]
        return _checked(file, _read(file, MAX_BYTES), self._inputs, finite=self._finite)


def make_samples(inputs: Sequence[Input]) -> list[Arrays]:
    """Return normal numbers, ones where they are whole, the same each time; what varies has the size 1."""
    random = np.random.default_rng(0)
    return [{wanted.name: _made_up(wanted, random) for wanted in inputs} for _ in range(MADE_UP)]


def common_shapes(samples: Sequence[Arrays]) -> dict[str, tuple[int, ...]]:
    """Return the shape of each input, of those that have the same in all samples."""
    first, *others = ({name: array.shape for name, array in sample.items()} for sample in samples)
    return {name: shape for name, shape in first.items() if all(shapes[name] == shape for shapes in others)}


def largest_shapes(samples: Iterable[Arrays]) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the sample that takes the most bytes."""
    sizes = (
        (sum(array.nbytes for array in sample.values()), {name: array.shape for name, array in sample.items()})
        for sample in samples
    )
    return max(sizes, key=lambda size: size[0])[1]


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
        start = stream.read(len(POINTER))
        refuse_pointer(file, start)
        if start.startswith(ARRAY):
            raise UsageError(file, f"is one array, not a {SUFFIX} file of several by name", FORM)
        try:
            with zipfile.ZipFile(stream) as archive:
                size = sum(member.file_size for member in archive.infolist())
                if size > room:
                    raise UsageError(file, f"takes {format_size(size)}, and {format_size(room)} are read", LESS)
            stream.seek(0)
            with np.load(stream, allow_pickle=False) as arrays:
                return {name: arrays[name] for name in arrays.files}
        except (ValueError, EOFError, KeyError, NotImplementedError, zipfile.BadZipFile, zlib.error) as error:
            raise UsageError(file, f"is no {SUFFIX} file", FORM) from error
        except MemoryError as error:
            raise UsageError(file, "has an array that is larger than memory", LESS) from error


def _checked(file: Path, arrays: dict[str, NDArray[Any]], inputs: Sequence[Input], *, finite: bool) -> Arrays:
    names = [wanted.name for wanted in inputs]
    for name in sorted(arrays.keys() ^ set(names)):
        why = f"has no array {name}" if name in names else f"has an array {name}, which is no input of the graph"
        raise UsageError(file, why, f"give one array for each of {', '.join(names)}")
    return {wanted.name: _fitted(file, arrays[wanted.name], wanted, finite=finite) for wanted in inputs}


def _fitted(file: Path, array: NDArray[Any], wanted: Input, *, finite: bool) -> NDArray[Any]:
    if wanted.shape is not None and not _fits(array.shape, wanted.shape):
        why = f"{wanted.name} has the shape {_sizes(array.shape)}, and the graph takes {_sizes(wanted.shape)}"
        raise UsageError(file, why, "give arrays of the input's shape")
    fitted = array
    if array.dtype.kind == wanted.dtype.kind or {array.dtype.kind, wanted.dtype.kind} == {"i", "u"}:
        with np.errstate(all="ignore"):
            fitted = array.astype(wanted.dtype, copy=False)
    whole = wanted.dtype.kind in "iu"
    if fitted.dtype != wanted.dtype or (whole and not np.array_equal(fitted, array)):
        why = f"{wanted.name} is {array.dtype}, and the graph takes {wanted.dtype}"
        raise UsageError(file, why, "give arrays of the input's type")
    if finite and fitted.dtype.kind == "f" and not np.isfinite(fitted).all():
        raise UsageError(file, f"{wanted.name} has values that are not finite", "leave such samples out")
    return fitted


def _fits(shape: Sequence[int], wanted: Sequence[int | str]) -> bool:
    if len(shape) != len(wanted):
        return False
    return all(size == has for size, has in zip(wanted, shape, strict=True) if isinstance(size, int))


def _sizes(shape: Sequence[int | str]) -> str:
    return f"[{', '.join(map(str, shape))}]"


def _made_up(wanted: Input, random: np.random.Generator) -> NDArray[Any]:
    shape = [size if isinstance(size, int) else 1 for size in wanted.shape or ()]
    if wanted.dtype.kind == "f":
        return random.standard_normal(shape).astype(wanted.dtype)
    return np.ones(shape, wanted.dtype)
