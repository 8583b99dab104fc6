"""``edgeglm devices``: the table, one profile with its sources, and JSON."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from edgeglm.cli import devices
from edgeglm.devices.loader import PROFILES, load_profile, profile_names
from edgeglm.devices.profile import Fact, statements
from edgeglm.errors import UsageError


def run(*arguments: str) -> str:
    return CliRunner().invoke(devices.command, list(arguments), catch_exceptions=False).stdout


def test_the_table_has_a_row_for_each_profile() -> None:
    heading, *rows = run().splitlines()
    assert heading.split() == list(devices.HEADINGS)
    assert [row.split()[0] for row in rows] == list(profile_names())
    orin = next(row for row in rows if row.startswith("jetson-orin "))
    assert orin.split("  ")[-1].strip() == "fp16"
    assert {"jetson", "aarch64", "48GiB", "gpu"} <= set(orin.split())


@pytest.mark.parametrize("name", profile_names())
def test_one_profile_shows_every_key_with_its_value_and_its_source(name: str) -> None:
    text = run(name)
    flat = " ".join(text.split())
    for key, statement in statements(load_profile(name)):
        assert f"  {key} = " in text
        assert (statement.source if isinstance(statement, Fact) else f"because {statement.reason}") in flat
    values = [line for line in text.splitlines() if "limits.dynamic_shapes = " in line]
    assert values[0].endswith(" yes" if load_profile(name).limits.dynamic_shapes.value else " no")


@pytest.mark.parametrize("arguments", [(), *((name,) for name in profile_names())])
def test_text_fits_a_hundred_columns_except_a_long_url(arguments: tuple[str, ...]) -> None:
    for line in run(*arguments).splitlines():
        assert len(line) <= devices.WIDTH or (line.strip().startswith("https://") and " " not in line.strip())


def test_an_alias_shows_the_profile_it_stands_for() -> None:
    assert run("jetson") == run("jetson-orin")
    assert run("jetson").startswith("jetson-orin (also jetson): NVIDIA Jetson AGX Orin 64GB\n")


def test_json_without_a_name_summarizes_the_profiles() -> None:
    summaries = json.loads(run("--json"))["profiles"]
    assert [summary["name"] for summary in summaries] == list(profile_names())
    rpi5 = next(summary for summary in summaries if summary["name"] == "rpi5")
    assert rpi5 == {
        "name": "rpi5",
        "title": "Raspberry Pi 5 8GB",
        "aliases": [],
        "architecture": "aarch64",
        "memory_usable_bytes": 6 << 30,
        "engines": ["ort", "litert"],
        "accelerators": [],
        "vision_precision": "int8",
        "decoder_precision": "int8",
    }


def test_json_with_a_name_is_the_whole_profile_in_bytes() -> None:
    profile = json.loads(run("qcs6490", "--json"))
    assert profile["memory"]["total"]["value"] == 8 << 30
    assert profile["memory"]["total"]["source"].startswith("https://")
    assert profile["engines"]["value"] == ["qnn", "ort", "litert"]
    assert profile["toolchain"]["qnn"]["htp_arch"]["value"] == 68
    assert "tensorrt" not in profile["toolchain"]


def test_a_file_of_ones_own_is_shown_alike(tmp_path: Path) -> None:
    board = tmp_path / "board.toml"
    board.write_text((PROFILES / "rpi5.toml").read_text("utf-8"))
    assert run(str(board)) == run("rpi5")


def test_an_unknown_name_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="did you mean rpi5"):
        run("rpi4")
