"""AWQ: integers of 4 bits, packed along the output features in an order of their own (its layout "gemm").

The product is rounded to the scales' dtype, mostly fp16, as AutoAWQ does (`dequantize_gemm`).
"""

from __future__ import annotations

from collections.abc import Mapping

from edgeglm.export.checkpoint.files import shown
from edgeglm.export.checkpoint.quantized.gptq import CODES, INTEGERS
from edgeglm.export.checkpoint.quantized.matrix import Matrix, Numbers
from edgeglm.export.checkpoint.quantized.settings import Found, Settings, check_matrix, companion, width_of
from edgeglm.export.checkpoint.tensor import FLOATS, Tensor

BITS, LAYOUT = 4, "gemm"
# Where in a word each of eight outputs lies.
ORDER = (0, 4, 1, 5, 2, 6, 3, 7)


def find_matrices(settings: Settings, stored: Mapping[str, Tensor]) -> Found:
    """Find the matrices that AWQ quantized.

    Raises:
        UnsupportedError: They are in another layout, or of other bits.
        DamagedFileError: Tensors are missing, or do not fit each other.
    """
    layout, bits = settings.word("version", "format", default=LAYOUT), settings.number("bits", "w_bit", default=BITS)
    if layout != LAYOUT or bits != BITS:
        why = f"is quantized by AWQ to {bits} bits in the layout {shown(layout)}"
        raise settings.unsupported(f"{why}, and edgeglm reads {BITS} bits in {LAYOUT}")
    found = (
        _matrix(settings, name.removesuffix(CODES), tensor, stored)
        for name, tensor in stored.items()
        if name.endswith(CODES)
    )
    return Found({matrix.name: matrix for matrix in found})


def _matrix(settings: Settings, module: str, codes: Tensor, stored: Mapping[str, Tensor]) -> Matrix:
    zeros, scales = (companion(stored, codes, module, suffix) for suffix in (".qzeros", ".scales"))
    check_matrix(codes, "I32")
    check_matrix(zeros, "I32")
    check_matrix(scales, *FLOATS)
    (groups, rows), columns = scales.shape, codes.shape[0]
    width = width_of(settings, scales, columns, varied=bool(settings.values.get("extra_config")))
    return Matrix(
        f"{module}.weight",
        f"AWQ {BITS}",
        Numbers(codes, rows, columns, transposed=True, bits=BITS, along_rows=True, order=ORDER),
        INTEGERS,
        Numbers(scales, rows, groups, transposed=True),
        Numbers(zeros, rows, groups, transposed=True, bits=BITS, along_rows=True, order=ORDER),
        width,
        scales.dtype,
    )
