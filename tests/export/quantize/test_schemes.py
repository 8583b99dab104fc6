from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

pytest.importorskip("onnx_ir")

import onnx_ir as ir

from edgeglm.engines import Dialect
from edgeglm.errors import UsageError
from edgeglm.export.model import Part
from edgeglm.export.quantize.lowering import opset_imports
from edgeglm.export.quantize.schemes import (
    HIGHER,
    PRECISIONS,
    SCHEMES,
    Blocked,
    Int4,
    Int8,
    Int8Block,
    Int8Static,
    fitted,
    loaded,
    parse_scheme,
)
from edgeglm.export.quantize.storage import dequantize, encode


def test_names_stand_for_schemes() -> None:
    assert [parse_scheme(name) for name in SCHEMES] == list(SCHEMES.values())
    assert parse_scheme("int4") == Int4(block_size=64)


def test_an_unknown_name_is_a_usage_error_with_the_choices() -> None:
    with pytest.raises(
        UsageError, match="'banana': there is no such scheme; choose one of a16w8, a8w8, fp16, fp32, int4, int4-128"
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


@dataclass(frozen=True)
class Int8Wide(Blocked):
    """A precision that only this file knows."""

    bits = 8
    block_size: int = 128


@pytest.mark.parametrize("dialect", ["ort", "portable"])
def test_a_blocked_precision_needs_no_code_of_its_own(dialect: Dialect) -> None:
    weight = np.random.default_rng(0).standard_normal((4, 256)).astype(np.float32)
    stored = encode(Int8Wide(), dialect, weight)
    known = encode(Int8Block(128), dialect, weight)
    assert all(np.array_equal(array, other) for array, other in zip(stored, known, strict=True))
    restored = dequantize(Int8Wide(), dialect, stored, 256)
    assert np.linalg.norm(restored - weight) / np.linalg.norm(weight) < 0.01
    assert opset_imports(Int8Wide(), dialect) == opset_imports(Int8Block(128), dialect)


@dataclass(frozen=True)
class Int6(Blocked):
    """Codes of 6 bits, for engines that read 8."""

    bits = 6


@pytest.mark.parametrize("dialect", ["ort", "portable"])
def test_codes_of_fewer_bits_than_engines_read_lie_in_those(dialect: Dialect) -> None:
    weight = np.random.default_rng(0).standard_normal((4, 256)).astype(np.float32)
    stored, known = encode(Int6(), dialect, weight), encode(Int8Block(32), dialect, weight)
    assert stored[0].shape == known[0].shape
    codes = stored[0].astype(int) - (128 if dialect == "ort" else 0)
    assert (codes.min(), codes.max()) == (-31, 31)
    restored = dequantize(Int6(), dialect, stored, 256)
    assert 0.01 < np.linalg.norm(restored - weight) / np.linalg.norm(weight) < 0.03


def test_the_next_higher_precisions_end_in_fp16() -> None:
    for name in HIGHER:
        steps = [name]
        while steps[-1] in HIGHER:
            steps.append(HIGHER[steps[-1]])
            assert len(steps) <= len(PRECISIONS)
        assert steps[-1] == "fp16"


@pytest.mark.parametrize(("columns", "size"), [(256, 128), (192, 64), (160, 64), (1176, 128), (64, 64)])
def test_wide_blocks_are_of_64_where_that_takes_fewer_bytes(columns: int, size: int) -> None:
    assert fitted(Int4(128), columns) == Int4(size)
    assert fitted(Int4(64), columns) == Int4(64)
    assert fitted(Int8(), columns) == Int8()


def test_memory_is_known_whatever_the_range_and_the_block() -> None:
    assert loaded(Int8Static(-1, 1)) == PRECISIONS["int8-static"].loaded
    assert loaded(Int4(32)) == PRECISIONS["int4"].loaded == PRECISIONS["int4-128"].loaded
