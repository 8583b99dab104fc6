"""Error feedback: less error under the covariance than rounding alone, and what a slow textbook GPTQ computes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from edgeglm.engines import Dialect
from edgeglm.export.quantize import feedback as module
from edgeglm.export.quantize.feedback import (
    Feedback,
    Inputs,
    codes_with_feedback,
    make_tile,
    save_tiles,
    tile_bytes,
    tile_slices,
)
from edgeglm.export.quantize.rounding import DAMPING, Floats
from edgeglm.export.quantize.schemes import Int4
from edgeglm.export.quantize.storage import dequantize, encode

Doubles = NDArray[np.float64]


def correlated(columns: int, tokens: int, seed: int = 0) -> Floats:
    """Tokens whose channels lean on each other, some loud."""
    random = np.random.default_rng(seed)
    mixed = random.standard_normal((tokens, columns // 4)) @ random.standard_normal((columns // 4, columns))
    return ((mixed + random.standard_normal((tokens, columns))) * random.gamma(0.5, 1.0, columns)).astype(np.float32)


def covariance_of(tokens: Floats) -> Doubles:
    return tokens.T.astype(np.float64) @ tokens / len(tokens)


def saved(covariance: Doubles, file: Path) -> Feedback:
    tiles = [make_tile(covariance[part, part]) for part in tile_slices(len(covariance))]
    return save_tiles(tiles, file, len(covariance))


def error(weight: Floats, rounded: Floats, covariance: Doubles) -> float:
    difference = rounded.astype(np.float64) - weight
    return float(np.einsum("nk,kl,nl->", difference, covariance, difference))


def textbook(weight: Floats, steps: Floats, covariance: Doubles, limit: int) -> NDArray[np.int8]:
    """GPTQ as its paper has it, one column after the other, the inverse reduced by each."""
    order = np.argsort(-np.diag(covariance), kind="stable")
    rest, codes = weight.astype(np.float64).copy(), np.zeros(weight.shape, np.int8)
    damped = covariance + np.eye(len(covariance)) * float(DAMPING) * np.diag(covariance).mean()
    for place, column in enumerate(order):
        later = order[place:]
        inverse = np.linalg.inv(damped[np.ix_(later, later)])
        codes[:, column] = np.clip(np.rint(rest[:, column] / steps[:, column]), -limit, limit - 1)
        missed = rest[:, column] - codes[:, column] * steps[:, column]
        rest[:, later] -= np.outer(missed, inverse[0] / inverse[0, 0])
    return codes


def test_codes_are_those_of_the_textbook(tmp_path: Path) -> None:
    random, covariance = np.random.default_rng(1), covariance_of(correlated(96, 400))
    weight = random.standard_normal((24, 96)).astype(np.float32)
    scales = (np.abs(weight.reshape(24, 3, 32)).max(2) / 7).astype(np.float32)
    codes = codes_with_feedback(weight, scales, saved(covariance, tmp_path / "f"), 32, 8)
    want = textbook(weight, np.repeat(scales, 32, 1), covariance, 8)
    assert (codes == want).mean() > 0.97  # shares are kept in fp16
    rounded, right = (found * np.repeat(scales, 32, 1) for found in (codes, want))
    assert error(weight, rounded, covariance) == pytest.approx(error(weight, right, covariance), rel=0.02)


@pytest.mark.parametrize("dialect", ["ort", "portable"])
def test_feedback_errs_less_under_the_covariance(dialect: Dialect, tmp_path: Path) -> None:
    tokens = correlated(320, 1000)
    covariance = covariance_of(tokens)
    weight = np.random.default_rng(2).standard_normal((64, 320)).astype(np.float32)
    energy = np.diag(covariance).astype(np.float32)
    known = Inputs(energy, feedback=saved(covariance, tmp_path / "f"))
    errors = {}
    for name, inputs in {"plain": None, "weighed": Inputs(energy), "fed back": known}.items():
        stored = encode(Int4(), dialect, weight, inputs=inputs)
        errors[name] = error(weight, dequantize(Int4(), dialect, stored, 320), covariance)
    assert errors["fed back"] < 0.6 * errors["weighed"]
    assert errors["weighed"] < errors["plain"]


@pytest.mark.parametrize("dialect", ["ort", "portable"])
def test_the_bytes_do_not_depend_on_the_chunks(
    dialect: Dialect, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "TILE", 256)
    covariance = covariance_of(correlated(700, 300))
    weight = np.random.default_rng(3).standard_normal((130, 700)).astype(np.float32)
    inputs = Inputs(np.diag(covariance).astype(np.float32), feedback=saved(covariance, tmp_path / "f"))
    whole = encode(Int4(), dialect, weight, inputs=inputs)
    pieces = [encode(Int4(), dialect, weight[start : start + 26], inputs=inputs) for start in range(0, 130, 26)]
    for index, array in enumerate(whole):
        assert np.array_equal(array, np.concatenate([piece[index] for piece in pieces], 0 if dialect == "ort" else 1))


def test_tiles_cover_all_columns_and_lie_one_after_the_other(tmp_path: Path) -> None:
    for columns in (64, 1176, 4096, 13696):
        slices = tile_slices(columns)
        assert [part.start for part in slices] == [0, *(part.stop for part in slices[:-1])]
        assert slices[-1].stop == columns
        assert all(part.start % 128 == 0 and part.stop - part.start <= module.TILE for part in slices)
    first, second = (saved(covariance_of(correlated(64, 100, seed)), tmp_path / "f") for seed in (0, 1))
    assert (first.offset, second.offset) == (0, tile_bytes(64))
    (_, before), (_, after) = next(first.tiles()), next(second.tiles())
    assert not np.array_equal(before.shares, after.shares)
    assert sorted(before.order) == list(range(64))


def test_inputs_that_never_vary_round_every_column_alone(tmp_path: Path) -> None:
    weight = np.random.default_rng(4).standard_normal((8, 64)).astype(np.float32)
    for tokens in (np.zeros((5, 64), np.float32), np.eye(1, 64, dtype=np.float32), np.ones((3, 64), np.float32)):
        covariance = covariance_of(tokens)
        known = Inputs(np.diag(covariance).astype(np.float32), feedback=saved(covariance, tmp_path / f"{tokens.sum()}"))
        rounded = dequantize(Int4(), "ort", encode(Int4(), "ort", weight, inputs=known), 64)
        alone = dequantize(Int4(), "ort", encode(Int4(), "ort", weight, inputs=Inputs(known.energy)), 64)
        assert np.isfinite(rounded).all()
        assert error(weight, rounded, covariance) <= 1.05 * error(weight, alone, covariance) + 1e-6
        if len(tokens) < 4 and tokens.sum() < 2:  # channels are independent
            assert np.array_equal(rounded, alone)
