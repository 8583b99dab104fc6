"""Sizes and percentages: what is read, what is refused, and the way there and back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeglm.errors import UsageError
from edgeglm.units import DISPLAY_UNITS, SIZE_UNITS, format_size, parse_percent, parse_size

SIZES = st.integers(0, 1 << 52)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("4096", 4096),
        ("4096B", 4096),
        ("1500MB", 1_500_000_000),
        ("2GiB", 2 << 30),
        ("1.5KiB", 1536),
        ("204.8GB", 204_800_000_000),
        ("0.1GiB", 107_374_182),
        ("1TB", 10**12),
    ],
)
def test_sizes_that_are_read(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text",
    [
        *("", " ", "2 gigs", "2 GiB", " 2GiB", "2GiB\n", "2gib", "2G", "GiB", "-1", "+1", "1e9", ".5GiB"),
        *("1.GiB", "1,5GiB", "1_000", "٣MB", "²MB", "nan", "inf", "0x10", "2GiB2GiB", "2ＧiB"),
        *("9" * 19, "1" * 5000),
    ],
)
def test_sizes_that_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="is not a size; write 2GiB, 1500MB or plain bytes"):
        parse_size(text)


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0B"),
        (1023, "1023B"),
        (1024, "1KiB"),
        (1_234_567_890, "1.15GiB"),
        (1_048_575, "1MiB"),
        (100 << 30, "100GiB"),
        (5000 << 40, "5000TiB"),
    ],
)
def test_sizes_as_they_are_shown(size: int, text: str) -> None:
    assert format_size(size) == text


@given(st.integers(0, 1023), st.sampled_from(DISPLAY_UNITS))
def test_a_size_whole_in_its_unit_comes_back_exactly(count: int, unit: str) -> None:
    size = count * SIZE_UNITS[unit]
    assert parse_size(format_size(size)) == size


@given(SIZES)
def test_any_size_comes_back_within_half_a_percent(size: int) -> None:
    assert abs(parse_size(format_size(size)) - size) <= size * 0.005 + 1  # a byte of rounding


@given(SIZES)
def test_what_is_shown_is_shown_again(size: int) -> None:
    assert format_size(parse_size(format_size(size))) == format_size(size)


@given(SIZES, SIZES)
def test_a_larger_size_never_shows_smaller(one: int, other: int) -> None:
    small, large = sorted((one, other))
    assert parse_size(format_size(small)) <= parse_size(format_size(large))


@pytest.mark.parametrize(
    ("text", "fraction"),
    [("2%", 0.02), ("0.02", 0.02), ("0", 0.0), ("0%", 0.0), ("100%", 1.0), ("1", 1.0), ("2.5%", 0.025)],
)
def test_percentages_that_are_read(text: str, fraction: float) -> None:
    assert parse_percent(text) == fraction


@given(st.integers(0, 10_000))
def test_a_percentage_and_its_fraction_are_the_same(hundredths: int) -> None:
    assert parse_percent(f"{hundredths / 100:.2f}%") == parse_percent(f"{hundredths / 10_000:.4f}")


@pytest.mark.parametrize("text", ["", "%", "2 %", "-2%", "2%%", "two", "2,5%", "nan", "inf%", "٣%", "1e-2"])
def test_percentages_that_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="is not a percentage; write 2% or 0"):
        parse_percent(text)


@pytest.mark.parametrize("text", ["101%", "2", "100.1%", "1.0001"])
def test_more_than_everything_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="is more than 100%; write "):
        parse_percent(text)
