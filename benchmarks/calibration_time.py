"""Time that a calibration adds to INT4 of a 9B model: ``python -m benchmarks.calibration_time WORK_DIR``.

One decoder block of AutoGLM-Phone-9B's shape is written with random weights and few words, and exported to INT4 twice:
plainly, and calibrated on windows of random tokens, in turns. Each figure is the median of that block's processor time,
of all threads and processes, times 40 layers, since other work on the machine changes it least. What a worker takes to
load torch, and reading the table's rows, count once. The peak is that of the processes together.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TypeVar

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np

from benchmarks.random_checkpoint import write_checkpoint
from benchmarks.random_shapes import AUTOGLM_PHONE_9B, glm4_config
from edgeglm.devices.loader import load_profile
from edgeglm.export.calibrate.calibrator import MOST, PASSAGE, SAMPLES, calibrate
from edgeglm.export.pipeline.export import export
from edgeglm.export.predict.forecast import export_peak, predict
from edgeglm.export.predict.learning import feedback_bytes, learning_bytes, worker_bytes
from edgeglm.export.prepare.preparation import open_export, prepare
from edgeglm.export.prepare.types import Prepared, Request
from edgeglm.export.prove.probes import Passage, embed, example_prompts
from edgeglm.export.quantize.stream import WORKERS
from edgeglm.memory import MemorySampler
from edgeglm.scratch import scratch_folder
from edgeglm.units import format_size

WORDS = 512
TEXT = AUTOGLM_PHONE_9B["text_config"]
LAYERS = TEXT["num_hidden_layers"]
# Of plain INT4's time, what a calibration may take in all.
BAR = 6.0
T = TypeVar("T")


def timed(run: Callable[[], T]) -> tuple[T, float]:
    """A result, and the processor time that it and its children took, in seconds."""
    before = sum(os.times()[:4])
    return run(), sum(os.times()[:4]) - before


@dataclass(frozen=True)
class Turn:
    """The seconds that a layer took in a turn, and the peaks in bytes of the plain and the calibrated export."""

    plain: float
    learning: float
    encoding: float
    low: int
    peak: int
    notes: tuple[str, ...]

    @property
    def ratio(self) -> float:
        """What a calibrated export takes, of the plain one's time."""
        return (self.learning + self.encoding) / self.plain


def measure(prepared: Prepared, passages: Sequence[Passage], work: Path, once: float, *, in_bf16: bool) -> Turn:
    """Export the block plainly and calibrated; `once` is what all layers together take only once, in seconds."""
    with MemorySampler() as memory:
        _, plain = timed(lambda: write(prepared, work))
        low = memory.peak_bytes
        with scratch_folder("calibration") as scratch:
            found, learning = timed(lambda: calibrate(prepared, passages, scratch, in_bf16=in_bf16))
            _, encoding = timed(lambda: write(prepare(prepared.opened, found), work))
    return Turn(plain, learning - once + once / LAYERS, encoding, low, memory.peak_bytes, found.notes)


def seconds_once(prepared: Prepared, passages: Sequence[Passage], *, in_bf16: bool) -> float:
    """Return what reading the table's rows takes, and loading torch for products in bf16."""
    _, rows = timed(lambda: [embed(prepared, prompt) for prompt in example_prompts(prepared, passages)])
    _, torch = timed(lambda: subprocess.run([sys.executable, "-c", "import torch"], check=True))
    return rows + torch * in_bf16


def open_block(work: Path) -> Prepared:
    """Write the checkpoint of one layer, if it is not there, and prepare its export."""
    config = glm4_config(
        hidden=TEXT["hidden_size"],
        layers=1,
        heads=TEXT["num_attention_heads"],
        kv_heads=TEXT["num_key_value_heads"],
        intermediate=TEXT["intermediate_size"],
        vocab=WORDS,
        tied=False,
    )
    model = work / "block"
    if not (model / "config.json").is_file():
        write_checkpoint(config, model)
    return prepare(open_export(Request(model, "block", load_profile("cpu"), "int4")))


def main() -> None:
    """Print the times, their ratio and the memory."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path, metavar="WORK_DIR")
    parser.add_argument("--windows", type=int, default=SAMPLES, metavar="N", help=f"windows of {PASSAGE} tokens")
    parser.add_argument("--turns", type=int, default=1, metavar="N")
    parser.add_argument("--fp32", action="store_true", help="no products in bf16, as on an older processor")
    arguments = parser.parse_args()
    prepared = open_block(arguments.work)
    tokens = np.random.default_rng(0).integers(0, WORDS - 1, (arguments.windows, PASSAGE)).tolist()
    passages = [Passage(tuple(window), 1) for window in tokens]
    worker = 0 if arguments.fp32 else worker_bytes(prepared.opened)
    once = seconds_once(prepared, passages, in_bf16=worker > 0)
    turns = [measure(prepared, passages, arguments.work, once, in_bf16=worker > 0) for _ in range(arguments.turns)]
    print(f"INT4 of {LAYERS} layers of AutoGLM-Phone-9B, processor time from one layer with random weights")
    print(f"plain        {minutes(turn.plain for turn in turns)}, peak {format_size(turns[0].low)}")
    whole = minutes(turn.learning + turn.encoding for turn in turns)
    print(f"calibrated   {whole}, peak {format_size(max(turn.peak for turn in turns))}")
    products = "bf16" if worker else "fp32"
    print(f"  samples    {minutes(turn.learning for turn in turns)}, {len(tokens)} windows of {PASSAGE}, in {products}")
    print(f"  encoding   {minutes(turn.encoding for turn in turns)}")
    print(f"disk         {format_size(LAYERS * feedback_bytes(prepared, MOST))}, temporary")
    predicted = export_peak(prepared.opened, workers=WORKERS, traced=False)
    more = learning_bytes(prepared.opened, MOST, worker)
    print(f"predicted    {format_size(predicted)}, {format_size(more)} more to learn")
    ratios = sorted(turn.ratio for turn in turns)
    verdict = "met" if median(ratios) <= BAR else "MISSED"
    print(*turns[0].notes, sep="\n")
    print(f"ratio        {median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f}), {verdict}: at most {BAR:g}")


def minutes(seconds: Iterable[float]) -> str:
    """Return the median for all layers."""
    return f"{LAYERS * median(seconds) / 60:.1f} min"


def write(prepared: Prepared, work: Path) -> None:
    """Write the bundle anew."""
    export(prepared, work / "bundle", predict(prepared), lambda _: None, resume=False)


if __name__ == "__main__":
    main()
