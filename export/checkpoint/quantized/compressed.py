"""compressed-tensors, what llm-compressor writes: packed integers, INT8 or FP8, with scales of every extent.

Which of them a matrix is, its tensors say. The product is rounded to the scales' dtype, as the library does
(`compressed_tensors.quantization.lifecycle.forward.dequantize`), and transformers with it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from edgeglm.errors import DamagedFileError
from edgeglm.export.checkpoint.files import shown
from edgeglm.export.checkpoint.quantized.fp8 import TABLES
from edgeglm.export.checkpoint.quantized.matrix import Matrix, Numbers
from edgeglm.export.checkpoint.quantized.packing import words_of
from edgeglm.export.checkpoint.quantized.settings import (
    Found,
    Settings,
    block_of,
    check_matrix,
    companion,
    lacking,
    misfit,
)
from edgeglm.export.checkpoint.tensor import FLOATS, Tensor

FORMATS = ("pack-quantized", "int-quantized", "float-quantized", "naive-quantized", "mixed-precision")
PACKED, WHOLE, SCALE = "weight_packed", "weight", "weight_scale"
# What the library takes for the order of activations that a g_idx tells.
BY_GROUP = ("group", "dynamic", True)
BYTES = tuple(np.arange(256, dtype=np.uint8).view(np.int8).astype(float).tolist())


def find_matrices(settings: Settings, stored: Mapping[str, Tensor]) -> Found:
    """Find the matrices that are compressed.

    Raises:
        UnsupportedError: In another format, sparse, or to be multiplied by rotations at run time.
        DamagedFileError: Tensors are missing, or do not fit each other or the config.
    """
    groups = _groups(settings)
    for group in ({}, *groups):
        layout = group.get("format") or settings.word("format")
        if layout not in FORMATS:
            why = f"has weights in compressed-tensors' format {shown(str(layout))}, and edgeglm reads"
            raise settings.unsupported(f"{why} {', '.join(FORMATS)}")
    for key in ("transform_config", "sparsity_config"):
        value = settings.values.get(key)
        if value and not (isinstance(value, Mapping) and value.get("format") == "dense"):
            raise settings.unsupported(f"has a {key} in its quantization_config, which edgeglm does not read")
    blocks = {Settings(settings.file, _weights(group)).block("block_structure") for group in groups} - {None}
    block = blocks.pop() if len(blocks) == 1 else None
    found = [_matrix(settings, tensor, stored, block) for tensor in stored.values()]
    matrices = {matrix.name: matrix for matrix in found if matrix}
    is_active = any(
        group.get(key) is not None for group in groups for key in ("input_activations", "output_activations")
    )
    return Found(matrices, settings.notes(activations=is_active))


def _matrix(
    settings: Settings, codes: Tensor, stored: Mapping[str, Tensor], block: tuple[int, int] | None
) -> Matrix | None:
    """Return the matrix that a tensor holds the codes of, if it holds any."""
    module, _, last = codes.name.rpartition(".")
    prefix = f"{module}."
    if last not in (PACKED, WHOLE) or (last == WHOLE and prefix + SCALE not in stored and codes.dtype in FLOATS):
        return None
    if last == WHOLE and codes.dtype not in (*TABLES, "I8"):
        if codes.dtype in FLOATS:
            raise settings.unsupported(f"has {codes.name} with scales and not compressed, which edgeglm does not read")
        return None
    scale = companion(stored, codes, prefix, SCALE)
    if scale.dtype not in FLOATS:
        raise misfit(scale, f"holds scales, and is stored as {scale.dtype}")
    zero = stored.get(prefix + "weight_zero_point")
    if zero is None and _all_say(settings, "symmetric", False):
        raise lacking(codes, "its weight_zero_point")
    if last == PACKED:
        return _packed(settings, codes, scale, zero, stored)
    check_matrix(codes, *TABLES, "I8")
    table = TABLES.get(codes.dtype, BYTES)
    high, wide = block_of(codes.shape, scale, block)
    (rows, columns), zeros = codes.shape, None
    if zero:
        if zero.dtype != codes.dtype:
            raise misfit(zero, f"holds zero points of {codes.dtype}, and is stored as {zero.dtype}")
        zeros = Numbers(zero, rows, -(-columns // wide), block=high)
    scales = Numbers(scale, rows, -(-columns // wide), block=high)
    return Matrix(codes.name, codes.dtype, Numbers(codes, rows, columns), table, scales, zeros, wide, scale.dtype)


def _packed(
    settings: Settings, codes: Tensor, scale: Tensor, zero: Tensor | None, stored: Mapping[str, Tensor]
) -> Matrix:
    module = codes.name.removesuffix(PACKED)
    check_matrix(codes, "I32")
    rows, columns, bits = _shape(settings, codes, companion(stored, codes, module, "weight_shape"))
    high, wide = block_of((rows, columns), scale, None)
    count = -(-columns // wide)
    order, zeros = stored.get(f"{module}weight_g_idx"), None
    if order is None and count > 1 and any(_all_say(settings, "actorder", word) for word in BY_GROUP):
        raise lacking(codes, "its weight_g_idx, the order of its columns (actorder),")
    if order and (order.dtype != "I32" or order.shape != (columns,)):
        raise misfit(order, f"is stored as {order.dtype} of shape {list(order.shape)}")
    if zero:
        check_matrix(zero, "I32")
        zeros = Numbers(zero, rows, count, bits=bits, along_rows=True)
    middle = 1 << (bits - 1)
    return Matrix(
        f"{module}weight",
        f"packed {bits}",
        Numbers(codes, rows, columns, bits=bits),
        tuple(float(code - middle) for code in range(256)),
        Numbers(scale, rows, count, block=high),
        zeros,
        order or wide,
        scale.dtype,
    )


def _shape(settings: Settings, codes: Tensor, shape: Tensor) -> tuple[int, int, int]:
    """Return rows, columns and bits of a packed matrix; from headers alone, columns to the end of a word."""
    choices = [
        Settings(settings.file, _weights(group)).number("num_bits")
        for group in _groups(settings)
        if group.get("weights")
    ]
    rows, words = codes.shape
    if shape.dtype not in ("I32", "I64") or shape.shape != (2,):
        raise misfit(shape, f"is stored as {shape.dtype} of shape {list(shape.shape)}, where two numbers are needed")
    try:
        said = shape.read(0, 2).view(np.int32 if shape.dtype == "I32" else np.int64).tolist()
    except DamagedFileError:  # not there, in a plan from the headers
        said = [rows, words * 32 // min(choices, default=4)]
    for bits in choices:
        if 1 <= bits <= 8 and said[0] == rows and said[1] > 0 and words_of(said[1], bits) == words:
            return rows, said[1], bits
    raise misfit(codes, f"has shape {[rows, words]}, which does not fit a weight of shape {said} in the config's bits")


def _groups(settings: Settings) -> Sequence[Mapping[str, Any]]:
    groups = settings.values.get("config_groups")
    if not isinstance(groups, Mapping) or not all(isinstance(group, Mapping) for group in groups.values()):
        raise settings.wrong("config_groups", groups)
    return list(groups.values())


def _all_say(settings: Settings, key: str, value: object) -> bool:
    """Return whether all groups say it of their weights: whose a matrix is, only patterns of names tell."""
    said = [weights.get(key) for group in _groups(settings) if (weights := _weights(group))]
    return bool(said) and all(setting == value for setting in said)


def _weights(group: Mapping[str, Any]) -> Mapping[str, Any]:
    weights = group.get("weights")
    return weights if isinstance(weights, Mapping) else {}
