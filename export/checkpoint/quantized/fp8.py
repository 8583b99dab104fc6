"""FP8: a byte a number, with a scale for all of a matrix, for each row, or for each block (DeepSeek, transformers).

Values are computed in fp32, as transformers does for a model in fp32 (integrations/finegrained_fp8.py). The blocks at
the edges may be smaller, as in DeepSeek's own code.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from edgeglm.export.checkpoint.files import shown
from edgeglm.export.checkpoint.quantized.matrix import Matrix, Numbers
from edgeglm.export.checkpoint.quantized.settings import Found, Settings, block_of, lacking, misfit
from edgeglm.export.checkpoint.tensor import FLOATS, Tensor

# One of them lies beside the weight; both are what it is multiplied by.
SCALES = ("weight_scale_inv", "weight_scale")
# Exponents without a fraction are as good, in a dtype of their own or as bytes.
SCALE_DTYPES = (*FLOATS, "F8_E8M0", "U8")


def find_matrices(settings: Settings, stored: Mapping[str, Tensor]) -> Found:
    """Find the matrices in FP8.

    Raises:
        UnsupportedError: ModelOpt made them in another format.
        DamagedFileError: One has no scale, or one of a shape that does not fit.
    """
    algorithm = settings.word("quant_algo", default="fp8")  # of NVIDIA's ModelOpt, which has others too
    if not algorithm.startswith("fp8"):
        raise settings.unsupported(f"is quantized by ModelOpt in {shown(algorithm)}, and edgeglm reads its FP8")
    block = settings.block("weight_block_size")
    matrices = {
        name: float_matrix(tensor, _scale(tensor, stored), block, "F32")
        for name, tensor in stored.items()
        if tensor.dtype in TABLES and name.endswith(".weight")
    }
    is_active = any(settings.values.get(key) is not None for key in ("activation_scheme", "quant_algo"))
    return Found(matrices, settings.notes(activations=is_active))


def float_matrix(weight: Tensor, scale: Tensor, block: tuple[int, int] | None, rounded: str) -> Matrix:
    """Return a matrix whose codes are FP8 numbers. Raises DamagedFileError where weight and scale do not fit."""
    if len(weight.shape) != 2 or not all(weight.shape):
        raise misfit(weight, f"is quantized, and has shape {list(weight.shape)}")
    if scale.dtype not in SCALE_DTYPES:
        raise misfit(scale, f"holds scales, and is stored as {scale.dtype}")
    (rows, columns), codes = weight.shape, Numbers(weight, *weight.shape)
    high, wide = block_of(weight.shape, scale, block)
    scales = Numbers(scale, rows, -(-columns // wide), block=high)
    return Matrix(weight.name, weight.dtype, codes, TABLES[weight.dtype], scales, None, wide, rounded)


def _scale(weight: Tensor, stored: Mapping[str, Tensor]) -> Tensor:
    module = weight.name.removesuffix("weight")
    for suffix in SCALES:
        if found := stored.get(module + suffix):
            return found
    raise lacking(weight, f"its {' or '.join(SCALES)}")


def _table(exponent_bits: int, mantissa_bits: int) -> tuple[float, ...]:
    """Return the numbers of an FP8 format without infinities (arXiv 2209.05433): all ones is no number."""
    code = np.arange(256)
    bias, ones = 2 ** (exponent_bits - 1) - 1, 2**mantissa_bits
    exponent, mantissa = (code & 127) >> mantissa_bits, code & (ones - 1)
    small = mantissa / ones * 2.0 ** (1 - bias)
    values = np.where(exponent == 0, small, (1 + mantissa / ones) * 2.0 ** (exponent - bias))
    values[127] = values[255] = np.nan
    return tuple(np.where(code < 128, values, -values).tolist())


TABLES = {
    "F8_E4M3": _table(4, 3),
    # The upper half of an fp16 number.
    "F8_E5M2": tuple((np.arange(256, dtype=np.uint16) << 8).view(np.float16).astype(np.float64).tolist()),
}
