"""Peak memory and time of exports, side by side with what was predicted and with what the disk alone takes.

``python -m benchmarks.export_memory WORK_DIR [SHAPE …]`` writes random checkpoints of real shapes into WORK_DIR one
after the other, with a tokenizer of GLM-4's size, so that modules are proven on a conversation and the bundle gets a
self-test. It plans and exports each in fresh processes, and prints one table, and with ``--plot FILE.svg`` a plot.
The time is compared with reading the checkpoint once and writing the bundle's bytes once on the same disk, in the same
run. A shape that the disk has no room for is skipped with a line.

With ``--running TOKENS …`` it measures running instead: the peak of a fresh runner that answers a prompt so long, in
INT4, INT8 and fp32, side by side with what `edgeglm plan` says. The shape ``demo`` is the demo, asked about a screen.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from benchmarks.random_tokenizer import SPECIAL, write_tokenizer
from edgeglm.export.samples.shipped import DATA
from edgeglm.units import format_size

ROOT = Path(__file__).parents[1]
SCREEN = DATA / "evaluation" / "0001.webp"
SHAPES = ("glm4-1b", "glm4-3b", "autoglm-phone-9b")
# Of the weights' bytes: a checkpoint and a bundle beside it, of at most half its size in INT4, and the partial one.
ROOM = {"glm4-1b": 6 << 30, "glm4-3b": 12 << 30, "autoglm-phone-9b": 28 << 30}
BLOCK = 16 << 20
# Tokens of an answer, and room for those of a template and of a screen.
ANSWER, OTHER_TOKENS = 16, 140


@dataclass(frozen=True)
class Row:
    """One export, measured."""

    shape: str
    checkpoint_bytes: int
    bundle_bytes: int
    planned_bytes: int
    peak_bytes: int
    predicted_bytes: int
    seconds: float
    disk_seconds: float

    def cells(self) -> tuple[str, ...]:
        """As the table shows it."""
        return (
            self.shape,
            format_size(self.checkpoint_bytes),
            format_size(self.bundle_bytes),
            f"{self.bundle_bytes / self.planned_bytes - 1:+.2%}",
            format_size(self.peak_bytes),
            f"{self.peak_bytes / self.predicted_bytes - 1:+.0%}",
            f"{self.seconds:.0f} s",
            f"{self.disk_seconds:.0f} s",
            f"{self.seconds / self.disk_seconds:.2f}",
        )


HEADINGS = (
    "SHAPE",
    "CHECKPOINT",
    "BUNDLE",
    "OFF PLAN",
    "PEAK RSS",
    "OFF PREDICTION",
    "TIME",
    "DISK ALONE",
    "RATIO",
)


def edgeglm(*arguments: str | Path, cache: Path) -> dict[str, object]:
    """Run a command with ``--json`` in a fresh process and return what it prints."""
    command = [sys.executable, "-m", "edgeglm", *map(str, arguments), "--json"]
    environment = {**os.environ, "XDG_CACHE_HOME": str(cache)}
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    result: dict[str, object] = json.loads(done.stdout)
    return result


def measure(shape: str, work: Path, options: list[str]) -> Row:
    """Write the checkpoint, export it with nothing cached, plan it, and time the disk alone."""
    model, bundle, cache = work / shape, work / "bundle", work / "cache"
    try:
        subprocess.run([sys.executable, ROOT / "benchmarks/random_checkpoint.py", shape, model], check=True)
        write_tokenizer(model)
        drop_caches(model)
        export = edgeglm("export", model, *options, "-o", bundle, cache=cache)
        plan = edgeglm("plan", model, *options, cache=cache)
        shutil.rmtree(bundle)
        size = number(export["bundle_bytes"])
        return Row(
            shape,
            sum(file.stat().st_size for file in model.glob("*.safetensors")),
            size,
            number(plan["bundle_bytes"]),
            number(export["peak_rss_bytes"]),
            number(export["predicted_peak_rss_bytes"]),
            float(str(export["seconds"])),
            disk_seconds(model, work / "zeros", size),
        )
    finally:
        for path in (model, bundle, cache, work / "bundle.partial"):
            shutil.rmtree(path, ignore_errors=True)


@dataclass(frozen=True)
class Run:
    """One answer of a fresh runner, measured."""

    shape: str
    precision: str
    tokens: int
    peak_bytes: int
    planned_bytes: int

    def cells(self) -> tuple[str, ...]:
        """As the table shows it."""
        off = f"{self.planned_bytes / self.peak_bytes - 1:+.1%}"
        sizes = format_size(self.peak_bytes), format_size(self.planned_bytes)
        return (self.shape, self.precision, f"{self.tokens}", *sizes, off)


RUN_HEADINGS = ("SHAPE", "PRECISION", "TOKENS", "PEAK RSS", "PLANNED", "OFF")


def runs(shape: str, work: Path, contexts: list[int]) -> Iterator[Run]:
    """Export a shape in each precision, and let a fresh runner answer prompts of these lengths."""
    model, cache = work / shape, work / "cache"
    is_demo = shape == "demo"
    if not is_demo and not model.exists():
        subprocess.run([sys.executable, ROOT / "benchmarks/random_checkpoint.py", shape, model], check=True)
        text = json.loads((model / "config.json").read_text())
        write_tokenizer(model, text.get("text_config", text)["vocab_size"] - len(SPECIAL))
    for precision in ("int4", "int8", "fp32"):
        bundle = work / f"{shape}-{precision}"
        source: list[str | Path] = [] if is_demo else [model]
        source += ["--target", "cpu", "--precision", precision]
        if not bundle.exists():
            edgeglm("export", *source, "-o", bundle, cache=cache)
        planned = edgeglm("plan", *source, cache=cache)["device_peak_rss_bytes"]
        assert isinstance(planned, dict)
        lengths = sorted(map(int, planned))
        for context in (context for context in contexts if context <= lengths[-1]):
            asked: list[str | Path] = ["--prompt", prompt(bundle, context)]
            asked += ["--image", SCREEN] if is_demo else []
            answer = edgeglm("run", bundle, *asked, "--max-new-tokens", f"{ANSWER}", "--grammar", "off", cache=cache)
            tokens = number(answer["prompt_tokens"]) + ANSWER
            expected = np.interp(tokens, lengths, [planned[f"{length}"] for length in lengths])
            yield Run(shape, precision, tokens, number(answer["peak_rss_bytes"]), round(float(expected)))


def prompt(bundle: Path, context: int) -> str:
    """Return a text that leaves of a context what a template, a screen and the answer take."""
    tokenizer = Tokenizer.from_file(str(bundle / "tokenizer" / "tokenizer.json"))
    words = 1000
    return "ok " * int(words * (context - OTHER_TOKENS) / len(tokenizer.encode("ok " * words).ids))


def number(value: object) -> int:
    """A whole number out of JSON."""
    assert isinstance(value, int)
    return value


def drop_caches(folder: Path) -> None:
    """Bring files to the disk, and out of the page cache."""
    for file in folder.iterdir():
        with file.open("rb") as opened:
            os.fsync(opened.fileno())
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def disk_seconds(model: Path, scratch: Path, size: int) -> float:
    """Read the checkpoint once, cold, and write as many bytes as the bundle has, synced."""
    drop_caches(model)
    start = time.monotonic()
    for _ in read(model):
        pass
    noise = np.random.default_rng(0).integers(0, 256, BLOCK, np.uint8).data
    with scratch.open("wb", buffering=0) as file:
        for begin in range(0, size, BLOCK):
            file.write(noise[: min(BLOCK, size - begin)])
        os.fsync(file.fileno())
    seconds = time.monotonic() - start
    scratch.unlink()
    return seconds


def read(model: Path) -> Iterator[int]:
    """Read every file of weights in blocks."""
    buffer = bytearray(BLOCK)
    for path in sorted(model.glob("*.safetensors")):
        with path.open("rb", buffering=0) as file:
            while count := file.readinto(buffer):
                yield count


def table(rows: Sequence[Row | Run]) -> str:
    """The rows as lines."""
    cells = [RUN_HEADINGS if isinstance(rows[0], Run) else HEADINGS, *(row.cells() for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in cells)


def plot(rows: list[Row]) -> str:
    """Checkpoint and peak of each shape as bars on one scale, in SVG."""
    longest = max(row.checkpoint_bytes for row in rows)
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="640" height="{60 * len(rows) + 20}" font-family="sans-serif">'
    ]
    for index, row in enumerate(rows):
        y = 60 * index + 20
        lines.append(f'<text x="0" y="{y + 20}" font-size="13">{row.shape}</text>')
        for offset, size, colour, what in (
            (0, row.checkpoint_bytes, "#9ab", "checkpoint"),
            (20, row.peak_bytes, "#c33", "peak RSS of the export"),
        ):
            width = max(2, round(300 * size / longest))
            lines.append(f'<rect x="130" y="{y + offset}" width="{width}" height="16" fill="{colour}"/>')
            lines.append(
                f'<text x="{136 + width}" y="{y + offset + 13}" font-size="12">{what} {format_size(size)}</text>'
            )
    return "\n".join([*lines, "</svg>", ""])


def main() -> None:
    """Measure the shapes that there is room for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path, metavar="WORK_DIR")
    parser.add_argument("shapes", nargs="*", metavar="SHAPE", default=SHAPES)
    parser.add_argument("--target", default="cpu")
    parser.add_argument("--precision", default="int4")
    parser.add_argument("--image-size", metavar="WxH", help="of a model that takes pictures")
    parser.add_argument("--plot", type=Path, metavar="FILE.svg")
    parser.add_argument("--running", type=int, nargs="+", metavar="TOKENS")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    if arguments.running:
        print(table([run for shape in arguments.shapes for run in runs(shape, arguments.work, arguments.running)]))
        return
    options = ["--target", arguments.target, "--precision", arguments.precision]
    options += ["--image-size", arguments.image_size] if arguments.image_size else []
    rows = []
    for shape in arguments.shapes:
        free, needed = shutil.disk_usage(arguments.work).free, ROOM.get(shape, 1 << 30)
        if free < needed:
            print(f"{shape}: skipped: it needs {format_size(needed)} of disk, and {format_size(free)} is free")
            continue
        rows.append(measure(shape, arguments.work, options))
    if rows:
        print(table(rows))
    if arguments.plot and rows:
        arguments.plot.write_text(plot(rows))


if __name__ == "__main__":
    main()
