from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from edgeglm.actions import parse_action
from edgeglm.errors import DamagedFileError, UsageError
from edgeglm.export.demo.samples import DATA, SHIPPED, make_sample, read_samples, write_samples


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


@pytest.mark.parametrize("content", [b"", b"\xff\xfe"])
def test_an_unreadable_set_is_a_usage_error(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "samples.jsonl"
    with pytest.raises(UsageError, match="cannot be read"):
        list(read_samples(file))
    file.write_bytes(content)
    with pytest.raises(UsageError, match=r"samples\.jsonl"):
        list(read_samples(file))


@pytest.mark.parametrize(
    "change",
    [
        {"messages": []},
        {"messages": [{"role": "user", "content": "text alone"}]},
        {"target": 5},
        {"box": [1, 2, 3]},
        {"box": ["left", 2, 3, 4]},
    ],
)
def test_a_bad_record_names_its_line(tmp_path: Path, change: dict[str, object]) -> None:
    file = write_samples("test", 2, tmp_path)
    good, bad = file.read_text().splitlines()
    file.write_text("\n".join([good, json.dumps({**json.loads(bad), **change})]))
    with pytest.raises(DamagedFileError, match=r"test\.jsonl:2: is not a sample"):
        list(read_samples(file))


def test_a_damaged_image_names_its_line(tmp_path: Path) -> None:
    file = write_samples("test", 1, tmp_path)
    image = tmp_path / "test" / "0000.webp"
    image.write_bytes(image.read_bytes()[:200])
    with pytest.raises(DamagedFileError, match=r"test\.jsonl:1"):
        list(read_samples(file))
    image.unlink()
    with pytest.raises(DamagedFileError, match=r"test\.jsonl:1"):
        list(read_samples(file))


def test_images_are_webp(shipped: Path) -> None:
    with Image.open(DATA / shipped.stem / "0000.webp") as image:
        assert image.format == "WEBP"
