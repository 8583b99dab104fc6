"""The profiles that ship with edgeglm: they load, and every value says where it comes from."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from edgeglm.devices.loader import PROFILES, load_profile, profile_names
from edgeglm.devices.profile import Choice, Fact, statements

DOCS = Path(__file__).parents[2] / "docs" / "devices.md"
EXPECTED = (
    "cpu",
    "jetson-orin",
    "jetson-orin-nano",
    "jetson-thor",
    "jetson-xavier",
    "qcs6490",
    "rpi5",
    "sm8550",
)


def anchors() -> set[str]:
    """The anchors that a Markdown renderer gives the headings of docs/devices.md."""
    headings = re.findall(r"^#+ (.+)$", DOCS.read_text("utf-8"), re.MULTILINE)
    return {heading.lower().replace(" ", "-") for heading in headings}


def grounds(name: str) -> list[str]:
    return [s.source if isinstance(s, Fact) else s.reason for _, s in statements(load_profile(name))]


def test_the_names_are_those_of_the_files() -> None:
    assert profile_names() == EXPECTED
    assert [load_profile(name).name for name in profile_names()] == list(EXPECTED)


def test_no_alias_is_taken_twice() -> None:
    aliases = [alias for name in profile_names() for alias in load_profile(name).aliases]
    assert "jetson" in aliases
    assert len({*aliases, *profile_names()}) == len(aliases) + len(EXPECTED)


def test_jetson_is_jetson_orin() -> None:
    assert load_profile("jetson") == load_profile("jetson-orin")


@pytest.mark.parametrize("name", EXPECTED)
def test_every_value_in_the_file_is_a_fact_or_a_choice_that_was_read(name: str) -> None:
    text = (PROFILES / f"{name}.toml").read_text("utf-8")
    keys = [key for key, _ in statements(load_profile(name))]
    assert len(keys) == len(re.findall(r"^(?:\w+\.)?value = ", text, re.MULTILINE))


@pytest.mark.parametrize("name", EXPECTED)
def test_facts_about_hardware_come_from_a_page_or_a_measurement(name: str) -> None:
    for key, statement in statements(load_profile(name)):
        if key.startswith(("memory.total", "memory.bandwidth", "cpu.", "accelerators.", "toolchain.")):
            assert isinstance(statement, Fact), key
            assert re.match(r"https://|measured: docs/", statement.source), key


@pytest.mark.parametrize("name", EXPECTED)
def test_what_points_into_the_docs_is_there(name: str) -> None:
    for ground in grounds(name):
        for anchor in re.findall(r"docs/devices\.md#([\w-]+)", ground):
            assert anchor in anchors(), ground
        for section in re.findall(r"docs/devices\.md, section (.+)", ground):
            assert section.lower().replace(" ", "-") in anchors(), ground


@pytest.mark.parametrize("name", EXPECTED)
def test_usable_memory_is_three_quarters_as_the_docs_say(name: str) -> None:
    memory = load_profile(name).memory
    assert memory.usable.value * 4 == memory.total.value * 3


@pytest.mark.parametrize(
    ("name", "sm"),
    [("jetson-xavier", 72), ("jetson-orin", 87), ("jetson-orin-nano", 87), ("jetson-thor", 110)],
)
def test_compute_capability(name: str, sm: int) -> None:
    tensorrt = load_profile(name).toolchain.tensorrt
    assert tensorrt is not None
    assert tensorrt.sm.value == sm


@pytest.mark.parametrize(("name", "chip"), [("qcs6490", (93, 68, 2 << 20)), ("sm8550", (43, 73, 8 << 20))])
def test_a_snapdragon_is_named_to_the_compiler_by_chip_and_architecture(name: str, chip: tuple[int, int, int]) -> None:
    qnn = load_profile(name).toolchain.qnn
    assert qnn is not None
    assert (qnn.soc_model.value, qnn.htp_arch.value, qnn.vtcm.value) == chip


def test_the_refusals_that_practice_asks_for() -> None:
    assert not load_profile("jetson-xavier").limits.dynamic_attention.value
    assert not load_profile("qcs6490").limits.variable_length_lstm.value


def test_a_choice_is_never_offered_as_a_fact() -> None:
    profile = load_profile("cpu")
    assert isinstance(profile.memory.usable, Choice)
    assert isinstance(profile.engines, Choice)
