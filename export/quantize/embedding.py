"""The embedding table as arrays that a device maps into memory and gathers rows from.

Each part is row-major with a fixed stride and no header: row i of a part lies at ``offset + i * stride``, the stride
being the bytes of one row. So looking a token up touches one page or two of the file, whatever the vocabulary. The
device side needs numpy alone::

    table = np.memmap(file, np.int8, "r", offset, (rows, columns))
    embedding = table[ids].astype(np.float32) * scale[ids, None]
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgeglm.export.model import Part
from edgeglm.export.quantize.rounding import Floats, check_range, magnitude, round_to_codes, storable_scale, tiles
from edgeglm.export.quantize.schemes import Fp16, Fp32, Int8

EmbeddingScheme = Fp32 | Fp16 | Int8

FLOATS: dict[type[EmbeddingScheme], ir.DataType] = {Fp32: ir.DataType.FLOAT, Fp16: ir.DataType.FLOAT16}


def embedding_parts(scheme: EmbeddingScheme, rows: int, columns: int) -> tuple[Part, ...]:
    """Return ``weight`` [rows, columns], and for INT8 ``scale`` [rows] FLOAT; rows append in both."""
    weight = Part("weight", FLOATS.get(type(scheme), ir.DataType.INT8), (rows, columns), 0)
    return (weight, Part("scale", ir.DataType.FLOAT, (rows,), 0)) if isinstance(scheme, Int8) else (weight,)


def encode_embedding(scheme: EmbeddingScheme, weight: Floats) -> tuple[NDArray[Any], ...]:
    """Return the rows `weight` [n, columns] of every part, in the order of `embedding_parts`.

    Raises:
        ValueError: For NaN or infinity.
        OverflowError: For more than the stored type can hold.
    """
    largest = magnitude(weight, 1)
    if isinstance(scheme, Int8):
        check_range(largest, np.float32)
        return _encode_int8(weight, largest)
    dtype = FLOATS[type(scheme)].numpy()
    check_range(largest, dtype)
    return (weight.astype(dtype),)


def gather(arrays: Sequence[NDArray[Any]], ids: NDArray[np.integer[Any]]) -> Floats:
    """Return rows `ids` [...] of the stored arrays as fp32 [..., columns]."""
    rows: Floats = arrays[0][ids].astype(np.float32)
    return rows * arrays[1][ids][..., None] if len(arrays) > 1 else rows


def _encode_int8(weight: Floats, largest: Floats) -> tuple[NDArray[Any], ...]:
    scale = storable_scale(largest / np.float32(127), np.float32, 128)
    codes = np.empty(weight.shape, np.int8)
    for rows, columns in tiles(weight.shape):
        codes[rows, columns] = round_to_codes(weight[rows, columns].copy(), scale[rows, None], -127, 127)
    return codes, scale
