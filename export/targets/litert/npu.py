"""A vision module in TFLite for an NPU: what LiteRT's compiler plug-in makes of it, run on the vendor's simulator."""

from __future__ import annotations

from collections.abc import Sequence

from edgeglm import manifest
from edgeglm.errors import AccuracyError
from edgeglm.export.prepare.types import Prepared, PreparedModule
from edgeglm.export.prove.values import Values
from edgeglm.export.targets.litert.plugin import compile_file, execute, title
from edgeglm.export.targets.qnn.calibrate import COMPARED
from edgeglm.export.targets.qnn.compile import (
    FEATURES,
    MIN_COSINE,
    PIXELS,
    SIMULATOR,
    cosine,
    simulated_count,
)
from edgeglm.export.write.writer import BundleWriter
from edgeglm.runtimes.engines.qnn.engine import chip_of

COMPILED = "npu.tflite"


def compile_on_npu(
    prepared: Prepared,
    module: PreparedModule,
    writer: BundleWriter,
    file: str,
    inputs: Sequence[Values],
    got: Sequence[Values],
) -> manifest.Compiled:
    """Compile a written file beside itself, and run the program in it on the simulator.

    Args:
        prepared: The export.
        module: The vision module.
        writer: Of the bundle.
        file: The module's file in it.
        inputs: Pictures, as their patches.
        got: What LiteRT makes of them on the CPU.

    Raises:
        UnsupportedError, BudgetError: As `compile_file`.
        AccuracyError: The simulator does not compute what the file says.
    """
    chip, name = chip_of(prepared.request.profile), f"{module.choice.name}/{COMPILED}"
    named, program = compile_file(writer.path(file), writer.path(name), chip)
    writer.adopt(name)
    count = simulated_count(module, inputs[:COMPARED])
    simulated = execute(program, chip, [values[PIXELS] for values in inputs[:count]]) if count else []
    found = min((cosine(ran, want[FEATURES]) for ran, want in zip(simulated, got, strict=False)), default=None)
    if found is not None and found < MIN_COSINE:
        why = f"the NPU's simulator computes it with a cosine of {found:.4f} to LiteRT's, below {MIN_COSINE}"
        raise AccuracyError("vision", why, "choose a16w8, or leave vision=tflite out")
    return manifest.Compiled(
        file=name,
        by=title(),
        chip=named,
        executed_on=SIMULATOR if count else None,
        cosine=None if found is None else round(found, 6),
    )
