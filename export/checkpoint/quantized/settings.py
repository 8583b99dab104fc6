"""Read a checkpoint's quantization_config with distrust, and the errors that every format shares."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeglm.errors import DamagedFileError, UnsupportedError
from edgeglm.export.checkpoint.files import AGAIN
from edgeglm.export.checkpoint.quantized.matrix import Matrix
from edgeglm.export.checkpoint.tensor import Tensor

REMEDY = "use the original, unquantized checkpoint"
# Where the tools of GPTQ and AWQ say how many columns share a scale; -1 is all of a row.
SIZES = ("group_size", "q_group_size")


@dataclass(frozen=True)
class Settings:
    """The quantization_config in a config file."""

    file: Path
    values: Mapping[str, Any]

    def number(self, *keys: str, default: int | None = None) -> int:
        """Return an integer under the first of the keys that is there. Raises DamagedFileError for anything else."""
        value = next((self.values[key] for key in keys if self.values.get(key) is not None), default)
        if type(value) is not int:
            raise self.wrong(keys[0], value)
        return value

    def word(self, *keys: str, default: str = "") -> str:
        """Return the text of the first key that is there, in lower case. Raises DamagedFileError as `number`."""
        value = next((self.values[key] for key in keys if self.values.get(key) is not None), default)
        if not isinstance(value, str):
            raise self.wrong(keys[0], value)
        return value.lower()

    def block(self, key: str) -> tuple[int, int] | None:
        """Return the rows and columns of a block, if they are given. Raises DamagedFileError as `number`."""
        match self.values.get(key):
            case None:
                return None
            case [rows, columns] if type(rows) is type(columns) is int and rows > 0 and columns > 0:
                return rows, columns
            case value:
                raise self.wrong(key, value)

    def notes(self, *, activations: bool) -> tuple[str, ...]:
        """Return what of its quantization is not in the weights, in words."""
        keys = any(self.values.get(key) for key in ("kv_cache_scheme", "kv_cache_quant_algo"))
        return (*(["activations"] if activations else []), *(["keys and values"] if keys else []))

    def wrong(self, key: str, value: object) -> DamagedFileError:
        """Return the error for a value that none of the format's tools writes."""
        return DamagedFileError(self.file, f"its quantization_config has {reprlib.repr(value)} as {key}", AGAIN)

    def unsupported(self, why: str) -> UnsupportedError:
        """Return the error for what edgeglm does not read."""
        return UnsupportedError(self.file, why, REMEDY)


@dataclass(frozen=True)
class Found:
    """The matrices of a quantized checkpoint, by their names, and what the user should know."""

    matrices: Mapping[str, Matrix]
    notes: tuple[str, ...] = ()


def block_of(shape: tuple[int, ...], scale: Tensor, block: tuple[int, int] | None) -> tuple[int, int]:
    """Return the rows and columns of a matrix that share a scale, as the scales' shape says it.

    Args:
        shape: The matrix's.
        scale: Its scales.
        block: What the config says of blocks; those at the edges may be smaller.

    Raises:
        DamagedFileError: They do not fit.
    """
    (rows, columns), found = shape, scale.shape
    if all(extent == 1 for extent in found):
        return rows, columns
    if block and found == (-(-rows // block[0]), -(-columns // block[1])):
        return block
    if found in ((rows,), (rows, 1)):
        return 1, columns
    if not block and len(found) == 2 and all(found) and rows % found[0] == 0 and columns % found[1] == 0:
        return rows // found[0], columns // found[1]
    raise misfit(scale, f"has shape {list(found)}, which does not fit a weight of shape {list(shape)}")


def width_of(settings: Settings, scales: Tensor, columns: int, *, varied: bool = False) -> int:
    """Return how many columns share a scale of a transposed matrix; the last ones may be fewer.

    Args:
        settings: They say it for all matrices, if they say it.
        scales: One row a group.
        columns: Of the matrix.
        varied: Whether some matrices may have other groups than the settings say.

    Raises:
        DamagedFileError: Settings and scales do not fit.
    """
    groups, size = scales.shape[0], columns
    if is_said := any(settings.values.get(key) is not None for key in SIZES):
        number = settings.number(*SIZES)
        if number != -1 and number < 1:
            raise settings.wrong(SIZES[0], number)
        size = columns if number == -1 else number
        if -(-columns // size) == groups:
            return size
    if is_said and not varied:
        raise misfit(scales, f"has {groups} groups, which do not fit {columns} columns in groups of {size}")
    if columns % groups:
        raise misfit(scales, f"has {groups} groups, which do not divide {columns} columns")
    return columns // groups


def companion(stored: Mapping[str, Tensor], tensor: Tensor, module: str, suffix: str) -> Tensor:
    """Return the tensor of a module that a quantized one cannot be read without. Raises DamagedFileError without it."""
    if found := stored.get(module + suffix):
        return found
    raise lacking(tensor, f"its {suffix}")


def check_matrix(tensor: Tensor, *dtypes: str) -> None:
    """Raise DamagedFileError where a tensor is not a matrix of one of the dtypes."""
    if tensor.dtype not in dtypes or len(tensor.shape) != 2 or not all(tensor.shape):
        wanted = f"a matrix of {' or '.join(dtypes)} is needed"
        raise misfit(tensor, f"is stored as {tensor.dtype} of shape {list(tensor.shape)}, where {wanted}")


def lacking(tensor: Tensor, what: str) -> DamagedFileError:
    """Return the error for a tensor whose companion is not there."""
    return DamagedFileError(f"{tensor.file}: {tensor.name}", f"is quantized, and {what} is missing", AGAIN)


def misfit(tensor: Tensor, why: str) -> DamagedFileError:
    """Return the error for a tensor that does not fit the others of its matrix."""
    return DamagedFileError(f"{tensor.file}: {tensor.name}", why, AGAIN)
