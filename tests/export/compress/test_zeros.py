"""Which weights become zero, and how the others make up for them."""

from __future__ import annotations

import numpy as np
import pytest

from edgeglm.errors import UnsupportedError, UsageError
from edgeglm.export.compress.zeros import (
    Pattern,
    Tile,
    check_shapes,
    parse_sparse,
    tile_of_covariance,
    tile_of_energy,
    with_zeros,
)
from edgeglm.export.quantize.rounding import Floats

COLUMNS = 192
PATTERNS = [pytest.param("2:4", id="two of four"), pytest.param("50%", id="half"), pytest.param("70%", id="most")]


@pytest.fixture(scope="module")
def tokens() -> Floats:
    """Inputs of which 60 directions are all, some channels far larger than others."""
    random = np.random.default_rng(0)
    mixed = random.standard_normal((600, 60)) @ random.standard_normal((60, COLUMNS))
    return (mixed * np.exp(random.standard_normal(COLUMNS))).astype(np.float32)


@pytest.fixture(scope="module")
def weight() -> Floats:
    return np.random.default_rng(1).standard_normal((48, COLUMNS)).astype(np.float32)


def covariance(tokens: Floats) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    wide = tokens.astype(np.float64)
    return wide.T @ wide / len(tokens)


def error(tokens: Floats, weight: Floats, made: Floats) -> float:
    return float(np.linalg.norm(tokens @ (made - weight).T) / np.linalg.norm(tokens @ weight.T))


@pytest.mark.parametrize("text", PATTERNS)
def test_zeros_are_as_many_as_asked_and_cost_less_the_more_is_known(text: str, tokens: Floats, weight: Floats) -> None:
    whole, pattern, found = slice(0, COLUMNS), parse_sparse(text), covariance(tokens)
    plain = with_zeros(weight, [Tile(whole, np.ones(COLUMNS, np.float32))], pattern)
    energy = with_zeros(weight, [tile_of_energy(whole, np.diag(found))], pattern)
    updated = with_zeros(weight, [tile_of_covariance(whole, found)], pattern)
    for made in (plain, energy, updated):
        assert (made == 0).mean() == pytest.approx(pattern.share, abs=1e-3)
        if pattern.grouped:
            assert ((made.reshape(48, -1, 4) == 0).sum(2) == 2).all()
    # Without a covariance, what stays keeps its bits.
    assert np.array_equal(energy[energy != 0], weight[energy != 0])
    errors = [error(tokens, weight, made) for made in (updated, energy, plain)]
    assert errors[0] < 0.9 * errors[1]
    assert errors[1] < 0.9 * errors[2]


def test_what_makes_up_for_a_zero_is_the_least_squares(tokens: Floats) -> None:
    weight, found = np.zeros((1, COLUMNS), np.float32), covariance(tokens)
    weight[0, 0], weight[0, 1:] = 1e-3, 10.0
    made = with_zeros(weight, [tile_of_covariance(slice(0, COLUMNS), found)], Pattern(1 / 128, grouped=False))
    assert np.flatnonzero(made[0] == 0)[0] == 0
    damped = found + 0.01 * np.diag(found).mean() * np.eye(COLUMNS)
    # Only those behind a column may make up for it, and of the second step one goes too.
    first = weight[0, 1:128] + 1e-3 * np.linalg.solve(damped[1:, 1:], damped[1:, 0])[:127]
    assert np.allclose(made[0, 1:128], first, atol=1e-4)


def test_tiles_know_nothing_of_each_other(tokens: Floats, weight: Floats) -> None:
    found, halves = covariance(tokens), [slice(0, 128), slice(128, COLUMNS)]
    tiles = [tile_of_covariance(half, found[half, half]) for half in halves]
    pattern = parse_sparse("2:4")
    together = with_zeros(weight, tiles, pattern)
    apart = [with_zeros(np.ascontiguousarray(weight[:, half]), [Tile(slice(0, len(tile.importance)), tile.importance,
             tile.shares)], pattern) for half, tile in zip(halves, tiles, strict=True)]  # fmt: skip
    assert np.array_equal(together, np.concatenate(apart, 1))


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("2:3", "2:3: is not the pattern of which GPUs skip half"),
        ("4:8", "is not the pattern"),
        ("0%", "makes no weight zero"),
        ("100%", "makes all weights zero"),
        ("101%", "is more than 100%"),
        ("half", "is not a percentage"),
        ("", "is not a percentage"),
    ],
)
def test_other_patterns_are_refused(text: str, why: str) -> None:
    with pytest.raises(UsageError, match=why):
        parse_sparse(text)


def test_rows_that_are_no_groups_of_four_are_refused() -> None:
    shapes = {"first": (3, 8), "second": (4, 70)}
    with pytest.raises(UnsupportedError, match="second has 70 columns, which are no groups of four; give a share"):
        check_shapes(parse_sparse("2:4"), shapes)
    check_shapes(parse_sparse("50%"), shapes)
