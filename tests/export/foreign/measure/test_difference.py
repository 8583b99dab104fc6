"""The distance of outputs: parts of other ranges, lost channels, whole numbers, values that are not finite."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from edgeglm.export.foreign.measure.difference import Comparison, Difference, worst_of

RANDOM = np.random.default_rng(0)


def compare(*pairs: tuple[Any, Any], uncut: Any = None) -> Difference:  # noqa: ANN401
    comparison, reach = Comparison(), Comparison()
    for want, got in pairs:
        comparison.add({"y": want}, {"y": got})
    if uncut is not None:
        reach.add({"y": uncut}, {"y": uncut})
    (difference,) = comparison.differences(lambda: reach)
    return difference


def head() -> np.ndarray:
    """Boxes of 0 to 320 and scores of 0 to 1, as a detector puts them together."""
    boxes, scores = RANDOM.random((1, 4, 50)) * 320, RANDOM.random((1, 8, 50))
    return np.concatenate([boxes, scores], 1).astype(np.float32)


def test_the_largest_error_of_a_sample_counts() -> None:
    ones = np.ones((1, 8), np.float32)
    assert compare((ones, ones * 1.01), (ones, ones * 1.2), (ones, ones)).error == pytest.approx(0.2)


def test_few_values_have_their_size_over_all_samples() -> None:
    """A regressor's value near 0 is an accident, not a small output: its own size says nothing of its error."""
    values = np.array([1.5, -0.8, 0.001, 0.9, -1.2], np.float32).reshape(-1, 1, 1)
    pairs = [(value, value + 0.01) for value in values]
    assert compare(*pairs).error == pytest.approx(0.01 * np.sqrt(5) / np.linalg.norm(values), rel=1e-4)
    batch = compare((values.reshape(1, 5), values.reshape(1, 5) + 0.01))
    assert batch.error == pytest.approx(compare(*pairs).error, rel=1e-4)


def test_samples_of_another_size_are_judged_apart() -> None:
    sizes = [1000.0, 1100, 900, 1200, 1, 1.1, 0.9, 1.2]
    pairs = [(np.array([size], np.float32), np.array([size + 0.2], np.float32)) for size in sizes]
    assert compare(*pairs).error == pytest.approx(0.2 * 2 / np.linalg.norm(sizes[4:]), rel=1e-3)
    one = compare(*pairs[:5]).error  # one alone is no part
    assert one is not None
    assert one < 0.001


@pytest.mark.parametrize("shape", [(), (1,), (1, 1), (6,)])
def test_an_output_that_stands_still_is_lost(shape: tuple[int, ...]) -> None:
    values = 100 + RANDOM.standard_normal((5, *shape)).astype(np.float32)
    found = compare(*[(value, np.full(shape, 100, np.float32)) for value in values])
    assert (found.error, str(found)) == (1.0, "y, which stands still,")
    moving = compare(*[(value, value + np.float32(0.3)) for value in values]).error
    assert moving is not None
    assert moving < 0.01


@pytest.mark.parametrize("transposed", [False, True])
def test_scores_beside_boxes_are_judged_apart(transposed: bool) -> None:
    want = head()
    got = want.copy()
    got[:, 4:] *= 1.3
    if transposed:
        want, got = want.transpose(0, 2, 1), got.transpose(0, 2, 1)
    difference = compare((want, got))
    assert difference.error == pytest.approx(0.3)
    assert difference.where == f"channels 4 to 11 of axis {2 if transposed else 1}"


def test_a_channel_that_stands_still_is_lost() -> None:
    want = head()
    got = want.copy()
    got[:, 7] = 0
    assert (compare((want, got)).error, compare((want, got)).where) == (1.0, "channel 7 lost of axis 1")


def test_a_channel_that_is_constant_in_the_original_is_not_lost() -> None:
    want = head()
    want[:, 7] = 0.25
    got = want.copy()
    got[:, 7] = 0.251
    error = compare((want, got)).error
    assert error is not None
    assert error < 0.01


def test_a_channel_of_which_a_cut_leaves_a_sliver_is_not_lost() -> None:
    uncut = RANDOM.standard_normal((4, 16)).astype(np.float32)
    uncut[:, 3] = [-1, 0.01, -0.5, -0.2]
    want = np.maximum(uncut, 0)
    got = want.copy()
    got[:, 3] = 0
    assert compare((want, got)).where == "channel 3 lost of axis 1"
    assert compare((want, got), uncut=want).where == "channel 3 lost of axis 1"  # the original gives it uncut
    error = compare((want, got), uncut=uncut).error
    assert error is not None
    assert error < 0.01
    got[:, 3] = [0, 0.02, 0.03, 0]  # as a part of its own, 300% away
    error = compare((want, got), uncut=uncut).error
    assert error is not None
    assert error < 0.01


def test_a_channel_that_a_cut_leaves_more_of_is_lost() -> None:
    uncut = RANDOM.standard_normal((64, 16)).astype(np.float32)
    uncut[:, 2] *= 0.01  # small beside the others, and half of it is left
    uncut[:, 5] = -1
    uncut[7, 5] = 0.9  # rare, and as large as the others
    want = np.maximum(uncut, 0)
    for channel in (2, 5):
        got = want.copy()
        got[:, channel] = 0
        assert compare((want, got), uncut=uncut).where == f"channel {channel} lost of axis 1"


def test_rare_scores_beside_boxes_are_lost() -> None:
    uncut = head()
    uncut[:, 4:] = -1.5
    uncut[:, 4:, 0] = 0.9
    want = np.maximum(uncut, 0)
    got = want.copy()
    got[:, 4:] = 0
    assert compare((want, got), uncut=uncut).where == "channels 4 to 11 lost of axis 1"


def test_a_sample_that_is_cut_to_a_sliver_counts_by_what_it_was() -> None:
    uncut = -RANDOM.random((4, 8)).astype(np.float32) - 0.5
    want = np.maximum(uncut, 0)
    got = want.copy()
    got[0, 0] = 0.01
    error = compare((want, got), uncut=uncut).error
    assert error == pytest.approx(0.01 / np.linalg.norm(uncut))
    other = compare((want, got), uncut=want).error
    assert other is not None
    assert other > 1


def test_channels_of_similar_ranges_are_judged_together() -> None:
    want = RANDOM.standard_normal((4, 16)).astype(np.float32) * np.geomspace(1, 20, 16).astype(np.float32)
    got = want.copy()
    got[:, 0] *= 2
    error = compare((want, got)).error
    assert error is not None
    assert error < 0.1


def test_whole_numbers_count_by_the_share_that_differs_over_all_samples() -> None:
    label = np.array([3])
    assert compare(*[(label, label)] * 9, (label, label + 1)).error == pytest.approx(0.1)
    assert compare((np.array([True, False]), np.array([True, True]))).error == pytest.approx(0.5)
    assert compare((np.array(["a", "b"], object), np.array(["a", "c"], object))).error == pytest.approx(0.5)


def test_nan_and_infinity_are_equal_where_both_are() -> None:
    want = np.array([np.nan, np.inf, -np.inf, 1], np.float32)
    assert compare((want, want.copy())).error == 0
    for index in range(1, 3):
        got = want.copy()
        got[index] = 5
        assert compare((want, got)).error == float("inf")
    assert compare((np.ones(2, np.float32), np.array([1, np.nan], np.float32))).error == float("inf")
    nothing = np.full(4, np.nan, np.float32)
    assert compare((nothing, np.zeros(4, np.float32))).error == float("inf")


def test_a_nan_among_those_of_the_original_is_one_number_lost() -> None:
    """A logarithm of values around 0: rounding moves some of them over it."""
    want = np.log(np.linspace(-1, 1, 64, dtype=np.float32), where=np.arange(64) >= 32, out=np.full(64, np.nan, "f"))
    typical = np.sqrt(np.mean(np.square(want[32:])))
    for index, value in ((32, np.nan), (31, -5.0)):
        got = want.copy()
        got[index] = value
        assert compare((want, got)).error == pytest.approx(typical / np.linalg.norm(want[32:]), rel=1e-3)
    assert (compare((want, np.full(64, np.nan, np.float32))).error or 0.0) >= 0.99


def test_nothing_compared_is_no_error() -> None:
    assert compare((np.zeros((0, 4), np.float32), np.zeros((0, 4), np.float32))).error is None
    comparison = Comparison()
    comparison.add({"y": []}, {"y": []})
    assert worst_of(comparison.differences()) is None


def test_another_number_of_detections_is_an_error() -> None:
    want = np.ones((4, 5), np.float32)
    assert compare((want, want[:3])).error == pytest.approx(0.5)
    assert compare((want[:0], want)).error is not None


def test_sequences_and_maps_are_compared_by_place() -> None:
    want = [{"a": 0.5, "b": 0.25}, {"a": 1.0}]
    assert compare((want, want)).error == 0
    assert compare((want, [{"a": 0.5, "b": 0.0}, {"a": 1.0}])).error == pytest.approx(
        0.25 / np.sqrt(0.5**2 + 0.25**2 + 1)
    )
