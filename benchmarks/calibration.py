"""What a calibration gains on the demo: scales moved and errors fed back in INT4, ranges and scales of static INT8.

``python -m benchmarks.calibration WORK_DIR`` from the repository's root prints two tables, for the demo and for a copy
of it with outlier channels (``--outliers FACTOR --channels N``). Both are calibrated on the demo's calibration set. The
first is computed in numpy on the first evaluation screens, with right answers, all modules in INT4 and the activations
rounded as ONNX Runtime does it: relative error of the answers' logits, and KL divergence in nats a token. The second
has the errors that exports record; ``--int4`` leaves it out.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np

from benchmarks.pareto import inject
from edgeglm.devices.loader import load_profile
from edgeglm.errors import AccuracyError
from edgeglm.export.calibrate.calibrator import calibrate, observe, read_calibration
from edgeglm.export.calibrate.histogram import Histogram, Range, least_squares, min_max, percentile
from edgeglm.export.calibrate.walk import Walk
from edgeglm.export.checkpoint.locate import DEMO
from edgeglm.export.pipeline.export import export
from edgeglm.export.predict.forecast import predict
from edgeglm.export.prepare.preparation import open_export, prepare
from edgeglm.export.prepare.types import Calibration, Prepared, Request
from edgeglm.export.prove.probes import sample_prompts
from edgeglm.export.prove.reference import OriginalWeights
from edgeglm.export.prove.values import divergence, relative_error
from edgeglm.export.quantize.rounded import RoundedWeights
from edgeglm.export.quantize.schemes import Int4
from edgeglm.export.samples.screenshots import read_samples
from edgeglm.export.samples.shipped import DATA, DEMO_DATA
from edgeglm.scratch import scratch_folder

SCREENS = 24
RANGES = {"min-max": min_max, "percentile": percentile, "least squares": least_squares}


def request(model: Path, precision: str) -> Request:
    """Proven on the demo's screens, whatever it is called."""
    return Request(model, model.name, load_profile("cpu"), precision, shipped=DEMO_DATA)


def int4(model: Path) -> None:
    """Round to nearest, with scales moved into weights, and with errors fed back too."""
    prepared = prepare(open_export(request(model, "int4")))
    with scratch_folder("calibration") as work:
        rounded(prepared, calibrate(prepared, read_calibration(DATA / "calibration.jsonl", DEMO)[0], work))


def rounded(prepared: Prepared, found: Calibration) -> None:
    """Print the errors of each way, all modules in INT4."""
    prompts = sample_prompts(prepared, read_samples(DATA / "evaluation.jsonl", SCREENS), answered=True)
    source = prepared.checkpoint
    original = [logits for _, logits in Walk(prepared, prompts, OriginalWeights(source), {}).logits()]
    print("INT4       ERROR   KL MEAN  KL MEDIAN")
    alone = {name: replace(inputs, feedback=None) for name, inputs in found.inputs.items()}
    for name, inputs in (("plain", {}), ("equalized", alone), ("fed back", found.inputs)):
        weights = RoundedWeights(source, Int4(), "ort", inputs, {})
        after = [logits for _, logits in Walk(prepared, prompts, weights, {}).logits()]
        pairs = list(zip(original, after, strict=True))
        errors, damage = [relative_error(q, p) for p, q in pairs], [divergence(p, q) for p, q in pairs]
        print(f"{name:<9}  {np.mean(errors):.4f}  {np.mean(damage):.5f}  {np.median(damage):.5f}", flush=True)


def static(model: Path, work: Path) -> None:
    """Vision and decoder, with each of the ranges; dynamic INT8 beside them."""
    prepared = prepare(open_export(request(model, "int8-static")))
    samples, _ = read_calibration(DATA / "calibration.jsonl", DEMO)
    seen, found = observe(prepared, samples)[0].histograms, calibrate(prepared, samples)
    print("INT8           VISION  DECODER")
    print(f"{'dynamic':<13}  {errors(request(model, 'int8'), None, work)}")
    for name in RANGES:
        calibration = replace(found, inputs={}, divisors={}, ranges=ranges(seen, name))
        print(f"{name:<13}  {errors(prepared.request, calibration, work)}", flush=True)
    print(f"{'equalized':<13}  {errors(prepared.request, found, work)}", flush=True)


def ranges(seen: Mapping[str, Histogram], method: str) -> dict[str, Range]:
    """Of every weight's inputs."""
    return {weight: RANGES[method](histogram) for weight, histogram in seen.items()}


def errors(asked: Request, calibration: Calibration | None, work: Path) -> str:
    """As the manifest has them."""
    made = prepare(open_export(asked), calibration)
    try:
        bundle, _ = export(made, work / "bundle", predict(made), lambda _: None, resume=False)
    except AccuracyError as error:
        return f"refused: {error.what}: {error.why}"
    return f"{bundle.modules[1].max_relative_error:<6}  {bundle.modules[2].max_relative_error}"


def main() -> None:
    """Both tables, twice."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path, metavar="WORK_DIR")
    parser.add_argument("--outliers", type=float, default=16.0, metavar="FACTOR")
    parser.add_argument("--channels", type=int, default=8, metavar="N")
    parser.add_argument("--int4", action="store_true", help="only the first table")
    arguments = parser.parse_args()
    loud = arguments.work / "outliers"
    inject(arguments.outliers, loud, arguments.channels)
    outliers = f"demo with {arguments.channels} outliers of {arguments.outliers:g}"
    for title, model in (("demo", DEMO), (outliers, loud)):
        print(f"{title}\n")
        int4(model)
        print()
        if not arguments.int4:
            static(model, arguments.work)
            print()


if __name__ == "__main__":
    main()
