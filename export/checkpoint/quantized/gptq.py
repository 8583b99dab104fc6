"""GPTQ: integers of 2, 3, 4 or 8 bits, packed along the input features, with a zero point and a scale a group of them.

The groups of columns are in ``g_idx``, in any order where they were quantized by activation (desc_act). The product is
rounded to the scales' dtype, mostly fp16, as by GPTQModel (`dequantize_weight`), which transformers uses.
"""

from __future__ import annotations

from collections.abc import Mapping

from edgeglm.export.checkpoint.files import shown
from edgeglm.export.checkpoint.quantized.matrix import Matrix, Numbers
from edgeglm.export.checkpoint.quantized.settings import (
    Found,
    Settings,
    check_matrix,
    companion,
    lacking,
    misfit,
    width_of,
)
from edgeglm.export.checkpoint.tensor import FLOATS, Tensor

CODES = ".qweight"
BITS = (2, 3, 4, 8)
# Whether zero points are stored one less.
LAYOUTS = {"gptq": True, "gptq_v2": False}
INTEGERS = tuple(float(code) for code in range(256))


def find_matrices(settings: Settings, stored: Mapping[str, Tensor]) -> Found:
    """Find the matrices that GPTQ quantized.

    Raises:
        UnsupportedError: They are in a layout for one engine's kernels, or of other bits.
        DamagedFileError: Tensors are missing, or do not fit each other or the config.
    """
    layout = settings.word("checkpoint_format", "format", default="gptq")
    if layout not in LAYOUTS:
        why = f"is quantized by GPTQ in the layout {shown(layout)}, and edgeglm reads {' and '.join(LAYOUTS)}"
        raise settings.unsupported(why)
    bits = settings.number("bits")
    found = (
        _matrix(settings, bits, name.removesuffix(CODES), tensor, stored, one_less=LAYOUTS[layout])
        for name, tensor in stored.items()
        if name.endswith(CODES)
    )
    return Found({matrix.name: matrix for matrix in found})


def _matrix(
    settings: Settings, bits: int, module: str, codes: Tensor, stored: Mapping[str, Tensor], *, one_less: bool
) -> Matrix:
    zeros, scales = (companion(stored, codes, module, suffix) for suffix in (".qzeros", ".scales"))
    check_matrix(codes, "I32")
    check_matrix(zeros, "I32")
    check_matrix(scales, *FLOATS)
    order = stored.get(f"{module}.g_idx")
    if order and (order.dtype != "I32" or len(order.shape) != 1 or not order.shape[0]):
        raise misfit(order, f"is stored as {order.dtype} of shape {list(order.shape)}")
    if order and settings.values.get("dynamic"):  # bits of some modules are others
        bits = codes.shape[0] * 32 // order.shape[0]
    if bits not in BITS:
        raise settings.unsupported(
            f"is quantized by GPTQ to {bits} bits, and edgeglm reads {', '.join(map(str, BITS))}"
        )
    columns = order.shape[0] if order else codes.shape[0] * 32 // bits
    groups, rows = scales.shape
    if not order and groups > 1 and settings.values.get("desc_act"):
        raise lacking(codes, "its .g_idx, the order of its columns (desc_act),")
    varied = any(settings.values.get(key) for key in ("dynamic", "extra_config"))
    return Matrix(
        f"{module}.weight",
        f"GPTQ {bits}",
        Numbers(codes, rows, columns, transposed=True, bits=bits),
        INTEGERS,
        Numbers(scales, rows, groups, transposed=True),
        Numbers(zeros, rows, groups, transposed=True, bits=bits, along_rows=True, one_less=one_less),
        order or width_of(settings, scales, columns, varied=varied),
        scales.dtype,
    )
