"""Time that a calibration adds to INT4 of a 9B model: ``python -m benchmarks.calibration_time WORK_DIR``.

One decoder block of AutoGLM-Phone-9B's shape is written with random weights and few words, and exported to INT4 twice:
plainly, and calibrated on windows of random tokens. Each figure is that block's processor time, of all threads, times
40 layers, since other work on the machine changes it least. The peak is that of this process.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np

from benchmarks.random_checkpoint import write_checkpoint
from benchmarks.random_shapes import AUTOGLM_PHONE_9B, glm4_config
from edgeglm.devices.loader import load_profile
from edgeglm.export.calibrate.calibrator import MOST, PASSAGE, SAMPLES, calibrate
from edgeglm.export.pipeline.export import export
from edgeglm.export.predict.forecast import export_peak, predict
from edgeglm.export.predict.learning import feedback_bytes, learning_bytes
from edgeglm.export.prepare.preparation import open_export, prepare
from edgeglm.export.prepare.types import Prepared, Request
from edgeglm.export.prove.probes import Passage
from edgeglm.export.quantize.stream import WORKERS
from edgeglm.memory import MemorySampler
from edgeglm.scratch import scratch_folder
from edgeglm.units import format_size

WORDS = 512
# Of plain INT4's time, what a calibration may take in all.
BAR = 6.0
T = TypeVar("T")


def timed(run: Callable[[], T]) -> tuple[T, float]:
    """A result, and the processor time that it took, in seconds."""
    before = time.process_time()
    return run(), time.process_time() - before


def main() -> None:
    """Print the times, their ratio and the memory."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path, metavar="WORK_DIR")
    parser.add_argument("--windows", type=int, default=SAMPLES, metavar="N", help=f"windows of {PASSAGE} tokens")
    arguments = parser.parse_args()
    text = AUTOGLM_PHONE_9B["text_config"]
    layers = text["num_hidden_layers"]
    config = glm4_config(
        hidden=text["hidden_size"],
        layers=1,
        heads=text["num_attention_heads"],
        kv_heads=text["num_key_value_heads"],
        intermediate=text["intermediate_size"],
        vocab=WORDS,
        tied=False,
    )
    model = arguments.work / "block"
    if not (model / "config.json").is_file():
        write_checkpoint(config, model)
    prepared = prepare(open_export(Request(model, "block", load_profile("cpu"), "int4")))
    tokens = np.random.default_rng(0).integers(0, WORDS - 1, (arguments.windows, PASSAGE)).tolist()
    with MemorySampler() as memory:
        _, plain = timed(lambda: write(prepared, arguments.work))
        low = memory.peak_bytes
        with scratch_folder("calibration") as work:
            passages = [Passage(tuple(window), 1) for window in tokens]
            found, learning = timed(lambda: calibrate(prepared, passages, work))
            _, encoding = timed(lambda: write(prepare(prepared.opened, found), arguments.work))
    predicted = export_peak(prepared.opened, workers=WORKERS, traced=False)
    print(f"INT4 of {layers} layers of AutoGLM-Phone-9B, processor time from one layer with random weights")
    print(f"plain        {layers * plain / 60:.0f} min, peak {format_size(low)}")
    print(f"calibrated   {layers * (learning + encoding) / 60:.0f} min, peak {format_size(memory.peak_bytes)}")
    print(f"  samples    {layers * learning / 60:.0f} min, {len(tokens)} windows of {PASSAGE} tokens")
    print(f"  encoding   {layers * encoding / 60:.0f} min")
    print(f"disk         {format_size(layers * feedback_bytes(prepared, MOST))}, temporary")
    print(f"predicted    {format_size(predicted)}, {format_size(learning_bytes(prepared.opened, MOST))} more to learn")
    ratio = (learning + encoding) / plain
    print(f"ratio        {ratio:.2f}, {'met' if ratio <= BAR else 'MISSED'}: at most {BAR:g}")


def write(prepared: Prepared, work: Path) -> None:
    """Write the bundle anew."""
    export(prepared, work / "bundle", predict(prepared), lambda _: None, resume=False)


if __name__ == "__main__":
    main()
