"""Questions about screens with known answers: made afresh, written as WebP + JSONL, read back.

A line of the JSONL is ``{"messages": […], "target": "…", "box": […]}``: one user message in OpenAI form (an image by
its path relative to the file, then the text), the right response, and for a tap the target's box (x0, y0, x1, y1) in
thousandths of the screen's width and height. Splits differ in their seeds, so no screen is in two of them.

``python -m edgeglm.export.demo.samples`` writes the two sets that ship with the package.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

import click
from PIL import Image

from edgeglm.errors import DamagedFileError, UsageError
from edgeglm.export.demo.metrics import Expected
from edgeglm.export.demo.render import render
from edgeglm.export.demo.screens import HEIGHT, WIDTH, Box, sample_scene
from edgeglm.export.demo.tasks import sample_step

DATA = Path(__file__).parent / "data"
SHIPPED = {"evaluation": 1024, "calibration": 192}
WEBP_QUALITY = 80


@dataclass(frozen=True)
class Sample:
    """A screenshot, the user's text and the right answer."""

    image: Image.Image
    prompt: str
    expected: Expected


def make_sample(split: str, index: int) -> Sample:
    """Sample `index` of `split`; the same two give the same sample."""
    random = Random(f"{split}/{index}")
    scene = sample_scene(random)
    step = sample_step(scene, random)
    box = _thousandths(step.box) if step.box else None
    return Sample(render(scene), step.prompt, Expected(step.response, box))


def _thousandths(box: Box) -> Box:
    x0, y0, x1, y1 = box
    return (
        round(x0 / WIDTH * 1000, 1),
        round(y0 / HEIGHT * 1000, 1),
        round(x1 / WIDTH * 1000, 1),
        round(y1 / HEIGHT * 1000, 1),
    )


def write_samples(split: str, count: int, folder: Path) -> Path:
    """Write the first `count` samples of `split` as ``SPLIT.jsonl`` and ``SPLIT/*.webp`` into `folder`."""
    (folder / split).mkdir(parents=True, exist_ok=True)
    file = folder / f"{split}.jsonl"
    with file.open("w", encoding="utf-8") as lines:
        for index in range(count):
            sample = make_sample(split, index)
            image = f"{split}/{index:04d}.webp"
            sample.image.save(folder / image, quality=WEBP_QUALITY, method=6)
            lines.write(json.dumps(_to_record(sample, image), ensure_ascii=False) + "\n")
    return file


def _to_record(sample: Sample, image: str) -> dict[str, object]:
    content = [{"type": "image_url", "image_url": {"url": image}}, {"type": "text", "text": sample.prompt}]
    message = {"role": "user", "content": content}
    record: dict[str, object] = {"messages": [message], "target": sample.expected.response}
    if sample.expected.box:
        record["box"] = sample.expected.box
    return record


def read_samples(file: Path, limit: int | None = None) -> Iterator[Sample]:
    """The first `limit` samples of a JSONL file.

    Raises:
        UsageError: The file cannot be read or holds no sample.
        DamagedFileError: A line is not a sample, or its image cannot be read.
    """
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(file, f"cannot be read ({error})", "give a JSONL file of samples") from error
    if not lines:
        raise UsageError(file, "holds no samples", "give a JSONL file of samples")
    for number, line in enumerate(islice(lines, limit), start=1):
        try:
            yield _from_record(json.loads(line), file.parent)
        except (ValueError, KeyError, TypeError, IndexError, OSError) as error:
            why = f"is not a sample ({type(error).__name__}: {error})"
            raise DamagedFileError(f"{file}:{number}", why, "write it as docs/demo-model.md shows") from error


def _from_record(record: dict[str, Any], folder: Path) -> Sample:
    parts = {part["type"]: part for part in record["messages"][0]["content"]}
    with Image.open(folder / parts["image_url"]["image_url"]["url"]) as image:
        pixels = image.convert("RGB")
    target, box = record["target"], record.get("box")
    if not isinstance(target, str):
        raise TypeError("target is not a text")
    if box is not None:
        x0, y0, x1, y1 = map(float, box)
        box = (x0, y0, x1, y1)
    return Sample(pixels, parts["text"]["text"], Expected(target, box))


@click.command()
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), default=DATA, help="Folder to write into.")
def main(out: Path) -> None:
    """Write the demo's evaluation and calibration sets."""
    for split, count in SHIPPED.items():
        click.echo(f"{write_samples(split, count, out)}: {count} samples")


if __name__ == "__main__":
    main()
