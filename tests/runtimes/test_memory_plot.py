"""The picture of a run's memory."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import pytest
from PIL import Image

from edgeglm.errors import UsageError
from edgeglm.memory import Phase
from edgeglm.runtimes.core.memory_plot import check_format, draw_memory

POINTS = [(0.0, 50 << 20), (40.0, 90 << 20), (100.0, 70 << 20)]
PHASES = [Phase("start", 0.0, 30.0, 50 << 20), Phase("<load>", 30.0, 60.0, 90 << 20)]


def test_an_svg_has_a_band_and_a_name_for_every_phase_and_the_curve(tmp_path: Path) -> None:
    draw_memory(tmp_path / "plot.svg", POINTS, PHASES)
    root = ElementTree.parse(tmp_path / "plot.svg").getroot()
    names = [element.text for element in root if element.tag.endswith("text")]
    assert {"start", "<load>", "resident memory, peak 90MiB, 100 ms"} <= set(names)
    bands = [element for element in root if element.tag.endswith("rect")][1:]
    assert [float(band.get("width", 0)) for band in bands] == pytest.approx([0.3 * 790, 0.6 * 790], abs=0.2)
    curve = [element.get("points", "") for element in root if element.get("stroke-width") == "2"]
    assert len(curve[0].split()) == len(POINTS)


def test_a_png_shows_the_same(tmp_path: Path) -> None:
    draw_memory(tmp_path / "plot.png", POINTS, PHASES)
    with Image.open(tmp_path / "plot.png") as image:
        assert image.size == (900, 420)
        colours = {colour for _, colour in image.getcolors(100_000) or []}
    assert {(0xDB, 0xE9, 0xF6), (0xFD, 0xEB, 0xD0), (0x1F, 0x5F, 0xA8)} <= colours


def test_another_ending_or_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"plot.pdf: is neither a .png nor a .svg file"):
        check_format(tmp_path / "plot.pdf")
    with pytest.raises(UsageError, match=r"its folder does not exist"):
        check_format(tmp_path / "nothing" / "plot.svg")
