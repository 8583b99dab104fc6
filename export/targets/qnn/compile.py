"""Compile a written image encoder for an NPU, and run it on the vendor's simulator."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeglm import manifest
from edgeglm.errors import AccuracyError
from edgeglm.export.prepare.types import Arrays, Prepared, PreparedModule
from edgeglm.export.prove.values import relative_error, two_digits
from edgeglm.export.targets.qnn.compiler import Compiled, compile_file, title
from edgeglm.export.write.writer import BundleWriter
from edgeglm.runtimes.engines.qnn.engine import chip_of

# Of the simulator's output and ONNX Runtime's of the same integers: a graph that compiles may still be wrong.
MIN_COSINE = 0.999
CONTEXT = "npu.onnx"
SIMULATOR = "HTP simulator"
PIXELS, FEATURES = "pixel_values", "features"
# Products of a run on the simulator, all screens together: about a minute.
SIMULATED_PRODUCTS = 1 << 34


def compile_module(prepared: Prepared, module: PreparedModule, writer: BundleWriter) -> tuple[manifest.Compiled, float]:
    """Compile a written module in the bundle; what is proven of it, and its error, on the simulator where that ran.

    Args:
        prepared: The export.
        module: The module.
        writer: Has written the module, and takes what is compiled.

    Raises:
        UnsupportedError, BudgetError: As `compile_file`.
        AccuracyError: The simulator does not compute what the integers say.
    """
    calibration = prepared.calibration
    assert calibration
    whole = prepared.probe.model.vision == prepared.model.vision
    count = simulated_count(module, calibration.shown) if whole else 0
    inputs = [given for given, _ in calibration.shown[:count]]
    chip, file = chip_of(prepared.request.profile), f"{module.choice.name}/{CONTEXT}"
    done = compile_file(writer.path(module.file), CONTEXT, chip, inputs, simulate=count > 0)
    writer.adopt(file)
    found = least_cosine(done)
    if found is not None and found < MIN_COSINE:
        raise wrong(found, module.choice.precision)
    error = error_of(done.simulated, calibration.shown) if count else calibration.candidates[module.choice.precision]
    assert done.chip
    return manifest.Compiled(
        file=file,
        by=title(),
        chip=done.chip,
        executed_on=SIMULATOR if count else None,
        cosine=None if found is None else round(found, 6),
        candidates=dict(calibration.candidates),
    ), two_digits(error)


def simulated_count(module: PreparedModule, samples: Sequence[object]) -> int:
    """Return how many samples the simulator runs in bounded time: it takes seconds for a device's milliseconds."""
    assert module.graph
    products = sum(stored.rows * stored.columns for stored in (job.stored for job in module.jobs) if stored.columns > 1)
    patches = module.graph.graph.inputs[0].shape
    assert patches
    return min(len(samples), SIMULATED_PRODUCTS // (products * int(patches.numpy()[0])))


def least_cosine(done: Compiled) -> float | None:
    """Return the least cosine of the simulator's output to ONNX Runtime's; None if nothing was simulated."""
    pairs = zip(done.simulated, done.onnx, strict=False)
    return min((cosine(got[FEATURES], want[FEATURES]) for got, want in pairs), default=None)


def cosine(one: NDArray[Any], other: NDArray[Any]) -> float:
    """Return the cosine of the angle between two arrays; 1 where both are zero, as a class that is not there."""
    a, b = one.astype(np.float64).ravel(), other.astype(np.float64).ravel()
    if not (a.any() or b.any()):
        return 1.0
    return float(a @ b / max(float(np.linalg.norm(a) * np.linalg.norm(b)), 1e-30))


def wrong(found: float, precision: str) -> AccuracyError:
    """Return the error for a simulator that computes something else."""
    why = f"the NPU's simulator computes {precision} with a cosine of {found:.4f} to ONNX Runtime's, below {MIN_COSINE}"
    return AccuracyError("vision", why, "choose a16w8, or a profile with vision on the cpu")


def error_of(got: Sequence[Arrays], shown: Sequence[tuple[Arrays, Arrays]]) -> float:
    """Return the largest relative error of the features, over as many samples as there are."""
    return max(relative_error(one[FEATURES], want[FEATURES]) for one, (_, want) in zip(got, shown, strict=False))
