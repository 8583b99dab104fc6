"""Draw the taps that a bundle predicts into held-out screens of the demo.

``python benchmarks/taps.py BUNDLE docs/taps.webp [--samples 19 36 30 1]`` asks the bundle's runner each sample's
question, prints its answers, and draws the four screens side by side: the right target as a box, the predicted tap as
a ring, the question above and the action below.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from edgeglm.actions import parse_action
from edgeglm.export.samples.screenshots import Sample, read_samples
from edgeglm.runtimes.core.runner import Runner
from edgeglm.runtimes.text.messages import message

DATA = Path(__file__).parents[1] / "export" / "demo" / "data"
SAMPLES = (19, 36, 30, 1)  # a home screen, a switch, an icon without a name, a dialog
MARGIN, CAPTION, RING = 24, 44, 13
PAPER, INK, TARGET, TAP = "white", "#222222", "#1a7f37", "#d1242f"
FONT = 20


def ask(runner: Runner, sample: Sample, index: int) -> str:
    """Return the bundle's answer to a sample."""
    picture = DATA / "evaluation" / f"{index:04}.webp"
    return runner.answer([message("user", sample.prompt, picture)], max_new_tokens=96).text


def draw(samples: Sequence[Sample], answers: Sequence[str]) -> Image.Image:
    """Return the screens side by side, with targets and taps."""
    screens = [_marked(sample, answer) for sample, answer in zip(samples, answers, strict=True)]
    width, height = screens[0].size
    page = Image.new("RGB", (len(screens) * (width + MARGIN) + MARGIN, height + 2 * CAPTION), PAPER)
    pen = ImageDraw.Draw(page)
    for column, (screen, sample, answer) in enumerate(zip(screens, samples, answers, strict=True)):
        left = MARGIN + column * (width + MARGIN)
        page.paste(screen, (left, CAPTION))
        _write(pen, (left + width // 2, CAPTION // 2), f"\N{LEFT DOUBLE QUOTATION MARK}{sample.prompt}\u201d")
        _write(pen, (left + width // 2, height + 3 * CAPTION // 2), _action(answer))
    return page


def _marked(sample: Sample, answer: str) -> Image.Image:
    screen = sample.image.convert("RGB")
    pen = ImageDraw.Draw(screen)
    across, down = screen.width / 1000, screen.height / 1000
    if box := sample.expected.box:
        x0, y0, x1, y1 = box
        pen.rectangle((x0 * across, y0 * down, x1 * across, y1 * down), outline=TARGET, width=3)
    action = parse_action(answer)
    if action and action.point:
        x, y = action.point[0] * across, action.point[1] * down
        for radius, colour, line in ((RING + 1, PAPER, 6), (RING, TAP, 4)):
            pen.circle((x, y), radius, outline=colour, width=line)
    return screen


def _action(answer: str) -> str:
    action = parse_action(answer)
    return f"{action.type} {list(action.point)}" if action and action.point else answer


def _write(pen: ImageDraw.ImageDraw, middle: tuple[float, float], text: str) -> None:
    pen.text(middle, text, INK, ImageFont.load_default(FONT), anchor="mm")


def main() -> None:
    """Ask, print the answers, and write the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("picture", type=Path)
    parser.add_argument("--samples", type=int, nargs="+", default=SAMPLES)
    arguments = parser.parse_args()
    every = list(read_samples(DATA / "evaluation.jsonl", max(arguments.samples) + 1))
    samples = [every[index] for index in arguments.samples]
    with Runner(arguments.bundle) as runner:
        answers = [ask(runner, sample, index) for index, sample in zip(arguments.samples, samples, strict=True)]
    for sample, answer in zip(samples, answers, strict=True):
        print(f"{sample.prompt}: {answer}")
    draw(samples, answers).save(arguments.picture, quality=82, method=6)


if __name__ == "__main__":
    main()
