from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("onnx_ir")

from numpy.typing import NDArray

from edgeglm.export.quantize.embedding import EmbeddingScheme, embedding_parts, encode_embedding, gather
from edgeglm.export.quantize.schemes import Fp16, Fp32, Int8

SCHEMES: list[tuple[EmbeddingScheme, float]] = [(Fp32(), 0.0), (Fp16(), 3e-4), (Int8(), 0.009)]
every_scheme = pytest.mark.parametrize(("scheme", "error"), SCHEMES, ids=str)


def table(rows: int = 100, columns: int = 1500) -> NDArray[np.float32]:
    return np.random.default_rng(1).standard_normal((rows, columns), np.float32)


@every_scheme
def test_rows_gathered_from_a_mapped_file_are_the_tables(scheme: EmbeddingScheme, error: float, tmp_path: Path) -> None:
    weight = table()
    planned = embedding_parts(scheme, *weight.shape)
    mapped = []
    for part in planned:
        path = tmp_path / part.suffix
        path.touch()
    for chunk in np.split(weight, [1, 33, 90]):
        for part, piece in zip(planned, encode_embedding(scheme, chunk), strict=True):
            with (tmp_path / part.suffix).open("ab") as file:
                file.write(piece.tobytes())
    for part in planned:
        path = tmp_path / part.suffix
        assert path.stat().st_size == part.nbytes
        mapped.append(np.memmap(path, part.dtype.numpy(), "r", shape=part.shape))
    ids = np.array([[99, 0, 33], [7, 7, 90]])
    rows = gather(mapped, ids)
    assert rows.shape == (2, 3, 1500)
    assert rows.dtype == np.float32
    assert np.linalg.norm(rows - weight[ids]) <= error * np.linalg.norm(weight[ids])


@every_scheme
def test_a_row_of_zeros_stays_zero(scheme: EmbeddingScheme, error: float) -> None:
    arrays = encode_embedding(scheme, np.zeros((2, 8), np.float32))
    assert not gather(arrays, np.array([0, 1])).any()
    assert all((array > 0).all() for array in arrays[1:])


@every_scheme
def test_a_table_that_is_not_a_number_is_refused(scheme: EmbeddingScheme, error: float) -> None:
    with pytest.raises(ValueError, match="NaN or infinity"):
        encode_embedding(scheme, np.array([[1, np.nan]], np.float32))


def test_a_table_beyond_half_precision_is_refused() -> None:
    with pytest.raises(OverflowError, match="more than float16 can"):
        encode_embedding(Fp16(), np.array([[1, -7e4]], np.float32))
    assert gather(encode_embedding(Int8(), np.array([[1, -7e4]], np.float32)), np.array([0]))[0, 1] == pytest.approx(
        -7e4
    )
