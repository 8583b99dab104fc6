from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from edgeglm.actions import parse_action
from edgeglm.export.demo.samples import SHIPPED, make_sample, write_samples
from edgeglm.export.samples.screenshots import read_samples
from edgeglm.export.samples.shipped import DATA


@pytest.fixture(params=SHIPPED)
def shipped(request: pytest.FixtureRequest) -> Path:
    return DATA / f"{request.param}.jsonl"


def test_every_shipped_record_parses(shipped: Path) -> None:
    samples = list(read_samples(shipped))
    assert len(samples) == SHIPPED[shipped.stem]
    for sample in samples:
        action = parse_action(sample.expected.response)
        assert action is not None
        assert sample.image.size == (336, 672)
        assert (sample.expected.box is not None) == (action.point is not None)


def test_shipped_samples_are_what_the_generator_makes(shipped: Path) -> None:
    for index, sample in enumerate(read_samples(shipped, limit=50)):
        fresh = make_sample(shipped.stem, index)
        assert (sample.prompt, sample.expected) == (fresh.prompt, fresh.expected)


def test_evaluation_and_calibration_share_no_screen() -> None:
    images = [{path.read_bytes() for path in (DATA / split).glob("*.webp")} for split in SHIPPED]
    assert [len(some) for some in images] == list(SHIPPED.values())
    assert not images[0] & images[1]


def test_shipped_data_is_small() -> None:
    assert sum(path.stat().st_size for path in DATA.rglob("*") if path.is_file()) <= 15_000_000


def test_written_samples_read_back(tmp_path: Path) -> None:
    samples = list(read_samples(write_samples("test", 3, tmp_path)))
    assert [sample.prompt for sample in samples] == [make_sample("test", index).prompt for index in range(3)]
    assert [sample.expected for sample in samples] == [make_sample("test", index).expected for index in range(3)]


def test_images_are_webp(shipped: Path) -> None:
    with Image.open(DATA / shipped.stem / "0000.webp") as image:
        assert image.format == "WEBP"
