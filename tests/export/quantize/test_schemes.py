from __future__ import annotations

import pytest

pytest.importorskip("onnx_ir")

import onnx_ir as ir

from edgeglm.errors import UsageError
from edgeglm.export.model import Part
from edgeglm.export.quantize.schemes import SCHEMES, Int4, Int8Block, parse_scheme


def test_names_stand_for_schemes() -> None:
    assert [parse_scheme(name) for name in SCHEMES] == list(SCHEMES.values())
    assert parse_scheme("int4") == Int4(block_size=64)


def test_an_unknown_name_is_a_usage_error_with_the_choices() -> None:
    with pytest.raises(
        UsageError, match="'banana': there is no such scheme; choose one of a16w8, a8w8, fp16, fp32, int4, int8"
    ):
        parse_scheme("banana")


@pytest.mark.parametrize("scheme", [Int4, Int8Block])
@pytest.mark.parametrize("size", [0, -32, 48, 256])
def test_a_block_size_without_kernels_is_refused(scheme: type[Int4], size: int) -> None:
    with pytest.raises(ValueError, match=f"block size {size} is not one of 32, 64, 128"):
        scheme(block_size=size)


@pytest.mark.parametrize(
    ("dtype", "axis", "nbytes", "multiple"),
    [
        (ir.DataType.FLOAT, 1, 60, 1),
        (ir.DataType.FLOAT16, 0, 30, 1),
        (ir.DataType.INT4, 1, 8, 2),
        (ir.DataType.INT4, 0, 8, 1),
    ],
)
def test_a_part_knows_its_bytes_and_how_rows_may_be_cut(
    dtype: ir.DataType, axis: int, nbytes: int, multiple: int
) -> None:
    part = Part("weight", dtype, (3, 5), axis)
    assert (part.nbytes, part.row_multiple) == (nbytes, multiple)
