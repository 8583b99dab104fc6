"""The types of a profile: what counts as a source, how values print, and the way to JSON and back."""

from __future__ import annotations

import msgspec
import pytest

from edgeglm.devices.loader import _decode_custom, load_profile, profile_names
from edgeglm.devices.profile import Bandwidth, Choice, Fact, InvalidValueError, Profile, Size, statements


@pytest.mark.parametrize(
    "source",
    [
        "https://example.org/board",
        "http://example.org/board.pdf (table 2)",
        "measured: docs/devices.md#qnn",
        "Board manual v2, section 3.1",
        "TB-10749, Table 1",
    ],
)
def test_what_names_a_source(source: str) -> None:
    assert Fact(1, source).source == source


@pytest.mark.parametrize(
    "source",
    ["", " ", "the vendor", "Board manual v2", "https://", "https://board", "www.example.org", "measured:"],
)
def test_what_names_no_source(source: str) -> None:
    with pytest.raises(InvalidValueError, match="names no source"):
        Fact(1, source)


def test_a_choice_needs_a_reason() -> None:
    assert Choice(1, "because").reason == "because"
    with pytest.raises(InvalidValueError, match="is empty"):
        Choice(1, "\t ")


def test_values_print_as_they_are_written() -> None:
    assert str(Size(12 << 30)) == "12GiB"
    assert str(Bandwidth(204_800_000_000)) == "204.8GB/s"


def test_statements_have_their_full_keys_in_the_order_of_the_file() -> None:
    keys = [key for key, _ in statements(load_profile("qcs6490"))]
    assert keys[:3] == ["memory.total", "memory.usable", "cpu.architecture"]
    assert keys[-1] == "toolchain.qnn.vtcm"
    assert len(set(keys)) == len(keys)


@pytest.mark.parametrize("name", profile_names())
def test_a_profile_survives_json(name: str) -> None:
    profile = load_profile(name)
    text = msgspec.json.encode(profile, enc_hook=int)
    assert msgspec.json.decode(text, type=Profile, dec_hook=_decode_custom) == profile
