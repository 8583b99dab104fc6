"""The demo's samples, made afresh from seeds. Splits differ in their seeds, so no screen is in two of them.

``python -m edgeglm.export.demo.samples`` writes the two sets that ship with the package.
"""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

import click

from edgeglm.export.demo.client import conversation
from edgeglm.export.demo.render import render
from edgeglm.export.demo.screens import HEIGHT, WIDTH, Box, Scene, sample_scene
from edgeglm.export.demo.steps import Step
from edgeglm.export.demo.tasks import sample_step
from edgeglm.export.samples.screenshots import Expected, Sample

DATA = Path(__file__).parent / "data"
SHIPPED = {"evaluation": 1024, "calibration": 192}
WEBP_QUALITY = 80


def make_step(split: str, index: int) -> tuple[Scene, Step]:
    """Return screen and step `index` of `split`; the same two give the same ones."""
    random = Random(f"{split}/{index}")
    scene = sample_scene(random)
    return scene, sample_step(scene, random)


def make_sample(split: str, index: int, system: str = "") -> Sample:
    """Return sample `index` of `split`: in the short form, or with a system prompt as the client sends it."""
    scene, step = make_step(split, index)
    box = _thousandths(step.box) if step.box else None
    before, prompt = conversation(step, system) if system else ([], step.prompt)
    return Sample(render(scene), prompt, Expected(step.response, box), tuple(before))


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


@click.command()
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), default=DATA, help="Folder to write into.")
def main(out: Path) -> None:
    """Write the demo's evaluation and calibration sets."""
    for split, count in SHIPPED.items():
        click.echo(f"{write_samples(split, count, out)}: {count} samples")


if __name__ == "__main__":
    main()
