from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnx_ir")

import onnx_ir as ir
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from edgeglm.engines import Dialect
from edgeglm.export.model import Part
from edgeglm.export.quantize.rounding import TILE_COLUMNS, TILE_ROWS
from edgeglm.export.quantize.schemes import SCHEMES, Codes, Int4, Int8, Int8Block, Int8Static, NpuInt8, Scheme
from edgeglm.export.quantize.storage import dequantize, encode, parts

FLOAT, FLOAT16 = ir.DataType.FLOAT, ir.DataType.FLOAT16
ERRORS = {
    "Fp32": 0.0,
    "Fp16": 3e-4,
    "Int8": 0.01,
    "Int8Static": 0.01,
    "NpuInt8": 0.01,
    "Int8Block": 0.007,
    "Int4": 0.103,
}
ALL_SCHEMES: list[Scheme] = [*SCHEMES.values(), Int8Block(64), Int4(32), Int4(128)]
DIALECTS: tuple[Dialect, ...] = ("ort", "portable")
CPU_ONLY, NPU_ONLY = Int8Static, NpuInt8
FORMS: list[tuple[Scheme, Dialect]] = [
    (scheme, dialect)
    for scheme, dialect in itertools.product(ALL_SCHEMES, DIALECTS)
    if not isinstance(scheme, NPU_ONLY) and (dialect == "ort" or not isinstance(scheme, CPU_ONLY))
] + [(scheme, "qdq") for scheme in ALL_SCHEMES if isinstance(scheme, NPU_ONLY)]
INTEGERS = [(scheme, dialect) for scheme, dialect in FORMS if isinstance(scheme, Int8 | Int8Static | Int8Block | Int4)]
every_form = pytest.mark.parametrize(("scheme", "dialect"), FORMS, ids=str)
every_integer_form = pytest.mark.parametrize(("scheme", "dialect"), INTEGERS, ids=str)
every_dtype = pytest.mark.parametrize("dtype", [FLOAT, FLOAT16], ids=str)


def gaussian(rows: int, columns: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal((rows, columns), np.float32)


def relative_error(value: NDArray[np.float32], exact: NDArray[np.float32]) -> float:
    return float(np.linalg.norm(value - exact) / np.linalg.norm(exact))


def stored_shape(part: Part) -> tuple[int, ...]:
    """The shape of the array that `encode` returns: two INT4 share a byte of the last axis."""
    return (*part.shape[:-1], part.shape[-1] // 2) if part.dtype == ir.DataType.INT4 else part.shape


@every_form
@every_dtype
@pytest.mark.parametrize(("rows", "columns"), [(6, 32), (2, 1), (TILE_ROWS + 6, TILE_COLUMNS + 37)])
def test_parts_say_exactly_what_encode_returns(
    scheme: Scheme, dialect: Dialect, dtype: ir.DataType, rows: int, columns: int
) -> None:
    planned = parts(scheme, dialect, rows, columns, dtype)
    arrays = encode(scheme, dialect, gaussian(rows, columns), dtype)
    assert [array.shape for array in arrays] == [stored_shape(part) for part in planned]
    assert [array.nbytes for array in arrays] == [part.nbytes for part in planned]
    stored = [np.dtype(np.uint8) if part.dtype == ir.DataType.INT4 else part.dtype.numpy() for part in planned]
    assert [array.dtype for array in arrays] == stored
    assert all(array.flags.c_contiguous for array in arrays)


@every_form
def test_a_long_double_wide_matrix_comes_back_to_the_schemes_precision(scheme: Scheme, dialect: Dialect) -> None:
    weight = gaussian(TILE_ROWS + 6, 2 * TILE_COLUMNS + 37)
    restored = dequantize(scheme, dialect, encode(scheme, dialect, weight), weight.shape[1])
    assert restored.shape == weight.shape
    assert relative_error(restored, weight) <= ERRORS[type(scheme).__name__]


@st.composite
def chunked_matrices(draw: st.DrawFn) -> tuple[NDArray[np.float32], list[int]]:
    half_rows, columns = draw(st.integers(1, 80)), draw(st.integers(1, 200))
    cuts = draw(st.sets(st.integers(1, half_rows), max_size=4))
    return gaussian(2 * half_rows, columns, seed=draw(st.integers(0, 9))), [2 * cut for cut in sorted(cuts)]


@every_form
@settings(max_examples=20, deadline=None)
@given(case=chunked_matrices(), shift=st.integers(0, 1))
def test_chunks_of_any_size_make_the_same_bytes(
    scheme: Scheme, dialect: Dialect, case: tuple[NDArray[np.float32], list[int]], shift: int
) -> None:
    weight, cuts = case
    planned = parts(scheme, dialect, *weight.shape)
    if max(part.row_multiple for part in planned) == 1:
        cuts = [cut - shift for cut in cuts]  # odd boundaries too
    chunks = [chunk for chunk in np.split(weight, cuts) if len(chunk)]
    pieces = [encode(scheme, dialect, chunk) for chunk in chunks]
    for part, whole, *cut in zip(planned, encode(scheme, dialect, weight), *pieces, strict=True):
        assert np.array_equal(np.concatenate(cut, part.row_axis), whole)


@every_form
def test_the_smallest_chunks_make_the_same_bytes_to_the_last_bit_of_a_scale(scheme: Scheme, dialect: Dialect) -> None:
    weight = gaussian(256, 100)  # one block of 128: numpy sums one row of one block in an order of its own
    planned = parts(scheme, dialect, *weight.shape)
    step = max(part.row_multiple for part in planned)
    pieces = [encode(scheme, dialect, weight[row : row + step]) for row in range(0, len(weight), step)]
    for part, whole, *cut in zip(planned, encode(scheme, dialect, weight), *pieces, strict=True):
        assert np.array_equal(np.concatenate(cut, part.row_axis), whole)


@every_form
def test_what_is_encoded_stays_as_it_was(scheme: Scheme, dialect: Dialect) -> None:
    step = max(part.row_multiple for part in parts(scheme, dialect, 2, 32))
    weight = gaussian(2, 32)
    before = weight.copy()
    encode(scheme, dialect, weight[:step])
    assert np.array_equal(weight, before)


@pytest.mark.parametrize("columns", [32, 33])
def test_int4_columns_in_pairs_refuse_an_odd_number_of_rows(columns: int) -> None:
    with pytest.raises(ValueError, match="packs rows in pairs, and 3 is odd"):
        parts(Int4(), "portable", 3, columns)
    with pytest.raises(ValueError, match="packs rows in pairs, and 3 is odd"):
        encode(Int4(), "portable", gaussian(3, columns))


@every_form
def test_the_input_is_left_as_it_was(scheme: Scheme, dialect: Dialect) -> None:
    weight = gaussian(4, 40)
    weight.flags.writeable = False
    encode(scheme, dialect, weight)
    assert np.array_equal(weight, gaussian(4, 40))


@every_form
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_weight_that_is_not_a_number_is_refused(scheme: Scheme, dialect: Dialect, bad: float) -> None:
    weight = gaussian(4, 40)
    weight[3, 39] = bad
    with pytest.raises(ValueError, match="the weight holds NaN or infinity"):
        encode(scheme, dialect, weight)


@pytest.mark.parametrize(("scheme", "dialect"), [form for form in FORMS if form[1] == "portable"][1:], ids=str)
@pytest.mark.parametrize("bad", [65536.0, -7e4])
def test_a_weight_beyond_half_precision_is_refused_not_made_infinite(
    scheme: Scheme, dialect: Dialect, bad: float
) -> None:
    weight = gaussian(4, 40)
    weight[2, 1] = bad
    with pytest.raises(OverflowError, match=r"more than float16 can \(65504\.0\)"):
        encode(scheme, dialect, weight, FLOAT16)


@every_integer_form
@every_dtype
def test_the_largest_weights_stay_finite_in_the_engines_arithmetic(
    scheme: Scheme, dialect: Dialect, dtype: ir.DataType
) -> None:
    weight = np.full((2, 128), np.finfo(dtype.numpy()).max, np.float32)
    weight[1] *= -1
    arrays = encode(scheme, dialect, weight, dtype)
    reach = {8: 128, 4: 8}[4 if isinstance(scheme, Int4) else 8]
    assert np.isfinite(arrays[1] * dtype.numpy().type(reach)).all()
    restored = dequantize(scheme, dialect, arrays, 128)
    assert relative_error(restored / weight[0, 0], weight / weight[0, 0]) < 0.13


@every_integer_form
@every_dtype
@pytest.mark.parametrize("tiny", [0.0, 1e-45, 1e-40, 1e-8, 1e-6, 1e-5, 1e-4])
def test_zero_and_tiny_rows_and_blocks_have_scales_an_engine_takes(
    scheme: Scheme, dialect: Dialect, dtype: ir.DataType, tiny: float
) -> None:
    weight = gaussian(4, 256)
    weight[1] *= tiny
    weight[2, 128:] *= tiny
    arrays = encode(scheme, dialect, weight, dtype)
    assert np.isfinite(arrays[1]).all()
    assert (arrays[1] != 0).all()
    restored = dequantize(scheme, dialect, arrays, 256)
    bound = 0.5 * np.abs(arrays[1]).max() + np.abs(weight).max() / 7
    assert np.abs(restored - weight).max() <= bound
    # What is small stays small: half a code of the smallest scale, or a third of itself in coarse subnormals.
    assert np.abs(restored - weight)[1].max() <= max(3e-8, 0.34 * np.abs(weight[1]).max())
    assert tiny or not restored[1].any()


@every_integer_form
def test_scales_are_positive_wherever_the_engine_asks_for_it(scheme: Scheme, dialect: Dialect) -> None:
    scale = encode(scheme, dialect, -np.abs(gaussian(4, 256)))[1]
    assert (scale > 0).all()  # the largest element is negative: -8 without turning the scale
    if dialect == "portable" or not isinstance(scheme, Int4):
        assert (encode(scheme, dialect, gaussian(64, 256))[1] > 0).all()


@every_integer_form
def test_every_code_is_the_nearest_under_its_stored_scale(scheme: Scheme, dialect: Dialect) -> None:
    weight = gaussian(8, 256)
    weight /= np.abs(weight).max(1, keepdims=True)
    arrays = encode(scheme, dialect, weight, FLOAT16)
    scale = np.abs(arrays[1].astype(np.float32))
    error = np.abs(dequantize(scheme, dialect, arrays, 256) - weight)
    clipped = np.abs(weight) > 6.5 * scale.min() if isinstance(scheme, Int4) else np.zeros(weight.shape, bool)
    assert error[~clipped].max() <= 0.501 * scale.max()


def q4_0(weight: NDArray[np.float32], lowest: int) -> NDArray[np.float32]:
    """The usual choice: the largest magnitude at `lowest`; -8 is llama.cpp's Q4_0, -7 the positive one."""
    blocks = weight.reshape(-1, 32)
    extreme = np.take_along_axis(blocks, np.abs(blocks).argmax(1)[:, None], 1)
    scale = extreme / lowest
    restored: NDArray[Any] = np.clip(np.rint(blocks / scale), -8, 7) * scale
    return restored.reshape(weight.shape)


@pytest.mark.parametrize(("dialect", "lowest", "gain"), [("ort", -8, 0.025), ("portable", 7, 0.07)])
@pytest.mark.parametrize("tail", ["gaussian", "student"])
def test_int4_beats_the_usual_choice_of_scale(dialect: Dialect, lowest: int, gain: float, tail: str) -> None:
    generator = np.random.default_rng(5)
    draws = {"gaussian": generator.standard_normal((64, 1024)), "student": generator.standard_t(3, (64, 1024))}
    weight = draws[tail].astype(np.float32)
    restored = dequantize(Int4(32), dialect, encode(Int4(32), dialect, weight), 1024)
    assert relative_error(restored, weight) < (1 - gain) * relative_error(q4_0(weight, lowest), weight)


@pytest.mark.parametrize(("bits", "levels"), [(8, 255), (16, 65535), (32, 1 << 24)])
def test_what_stands_beside_an_npus_matrix_comes_back_to_half_a_step(bits: int, levels: int) -> None:
    vector = np.random.default_rng(0).normal(0.3, 1, (500, 1)).astype(np.float32)
    codes, step, zero = encode(Codes(bits), "qdq", vector)
    (weight, scale, point) = parts(Codes(bits), "qdq", 500, 1)
    assert [each.suffix for each in (weight, scale, point)] == ["weight", "scale", "zero"]
    assert (codes.nbytes, step.nbytes, zero.nbytes) == (weight.nbytes, scale.nbytes, point.nbytes)
    assert codes.dtype == (np.int32 if bits == 32 else f"uint{bits}")
    back = dequantize(Codes(bits), "qdq", (codes, step, zero), 1)
    span = np.abs(vector).max() if bits == 32 else np.ptp(vector)
    assert np.abs(back - vector).max() <= 0.51 * span / levels + 1e-6
    assert bits != 32 or zero[0] == 0


def test_a_bias_of_zeros_stays_one() -> None:
    arrays = encode(Codes(32), "qdq", np.zeros((5, 1), np.float32))
    assert not dequantize(Codes(32), "qdq", arrays, 1).any()
