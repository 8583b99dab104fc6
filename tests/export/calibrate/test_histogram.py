"""Observers: on data with outliers the three ranges differ, and each is what it says."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from numpy.typing import NDArray

from edgeglm.export.calibrate.histogram import (
    LEVELS,
    Histogram,
    Range,
    least_squares,
    min_max,
    percentile,
    squared_error,
)


def seen(*pieces: NDArray[np.float32]) -> Histogram:
    histogram = Histogram()
    for piece in pieces:
        histogram.add(piece)
    return histogram


def gaussian(count: int = 200_000) -> NDArray[np.float32]:
    return np.random.default_rng(0).standard_normal(count).astype(np.float32)


def rounded(values: NDArray[np.float32], range_: Range) -> NDArray[np.float32]:
    low, high = range_
    step = np.float32((high - low) / LEVELS)
    inside: NDArray[np.float32] = np.clip(np.rint((values - low) / step), 0, LEVELS) * step + np.float32(low)
    return inside


def error(values: NDArray[np.float32], range_: Range) -> float:
    return float(np.square(rounded(values, range_).astype(np.float64) - values).sum())


def test_outliers_make_the_methods_differ() -> None:
    values = np.concatenate([gaussian(), np.array([60, -40, 55], np.float32)])
    histogram = seen(values)
    assert min_max(histogram) == (-40, 60)
    low, high = percentile(histogram)
    assert (low, high) == pytest.approx((-3.9, 3.9), abs=0.15)  # 99.99% of a Gaussian
    best = least_squares(histogram)
    assert 4 < best[1] < 60
    errors = {method: error(values, range_) for method, range_ in
              (("min_max", min_max(histogram)), ("percentile", (low, high)), ("least_squares", best))}  # fmt: skip
    assert errors["least_squares"] < 0.9 * errors["min_max"]
    assert errors["least_squares"] < 0.9 * errors["percentile"]


def test_without_outliers_all_is_kept() -> None:
    values = np.random.default_rng(1).uniform(-2, 2, 100_000).astype(np.float32)
    histogram = seen(values)
    assert least_squares(histogram) == pytest.approx((-2, 2), rel=0.03)
    assert percentile(histogram) == pytest.approx((-2, 2), rel=0.01)


def test_a_range_holds_zero() -> None:
    for values in (gaussian() ** 2 + 3, -(gaussian() ** 2) - 3, np.zeros(10, np.float32)):
        for method in (min_max, percentile, least_squares):
            low, high = method(seen(values))
            assert low <= 0 <= high


def test_what_comes_in_pieces_and_grows_is_counted_as_at_once() -> None:
    values = gaussian(50_000) * np.linspace(0.01, 30, 50_000).astype(np.float32)
    whole, pieces = seen(values), seen(*np.split(values, 50))
    assert pieces.limit == whole.limit
    assert pieces.counts.sum() == whole.counts.sum() == 50_000
    for method in (min_max, percentile, least_squares):
        assert method(pieces) == pytest.approx(method(whole), rel=0.01)


def test_the_histogram_knows_what_a_range_costs() -> None:
    values = np.concatenate([gaussian(), np.array([12.0], np.float32)])
    for range_ in ((-1.0, 1.0), (-4.0, 4.0), (-8.0, 12.0)):
        assert squared_error(seen(values), range_) == pytest.approx(error(values, range_), rel=0.03)


def test_a_large_tensor_is_counted_in_pieces() -> None:
    values = gaussian(3 << 20)
    tracemalloc.start()
    whole = seen(values)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < values.nbytes
    assert np.array_equal(whole.counts, seen(*np.split(values, 8)).counts)
