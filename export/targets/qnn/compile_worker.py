"""The compiling worker, which does a `Work`.

It compiles a quantized ONNX for the NPU, runs both where inputs are given, and leaves the outputs in a file. It is a
process of its own because the vendor's libraries print, keep memory, and may end the process; what it writes on stdout
and stderr is for the parent to look through.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import onnxruntime
from msgspec import Struct

from edgeglm.runtimes.engines.ort.options import session_options
from edgeglm.runtimes.engines.qnn.engine import Chip, Npu, find_npu
from edgeglm.worker import serve


class Work(Struct, frozen=True):
    """A task in `folder`: compile `model` to `context`, run `inputs` (npz), and write `outputs`.

    Without a `model`, `context` was compiled before. `inputs` are named ``0.INPUT`` and so on; `outputs`
    ``onnx.0.OUTPUT`` and ``npu.0.OUTPUT``.
    """

    folder: str
    model: str | None
    context: str | None
    chip: Chip
    inputs: str | None = None
    outputs: str = ""
    simulate: bool = False


def do(work: Work) -> None:
    """Compile and run what is asked for."""
    # The compiler puts a hash of the model's path, as it was given, into what it makes.
    os.chdir(work.folder)
    npu = find_npu()
    found: dict[str, Any] = {}
    if work.model and work.context:
        _compile(npu, work.model, work.context, work.chip)
    if work.inputs:
        samples = _samples(work.inputs)
        if work.model:
            found |= _run("onnx", _reference(work.model), samples)
        if work.simulate and work.context:
            session = npu.session(work.context, work.chip, {})
            session.disable_fallback()  # which would hide why a run fails
            found |= _run("npu", session, samples)
        np.savez(work.outputs, **found)


def _compile(npu: Npu, model: str, context: str, chip: Chip) -> None:
    entries = {"ep.context_enable": "1", "ep.context_file_path": context, "ep.context_embed_mode": "1"}
    npu.session(model, chip, entries)


def _reference(model: str) -> onnxruntime.InferenceSession:
    """Return the integers as the graph says them, operator by operator."""
    options = session_options(model)
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.enable_cpu_mem_arena = False
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def _samples(path: str) -> list[dict[str, Any]]:
    found: dict[int, dict[str, Any]] = {}
    with np.load(path) as arrays:
        for key in arrays.files:
            number, _, name = key.partition(".")
            found.setdefault(int(number), {})[name] = arrays[key]
    return [found[number] for number in sorted(found)]


def _run(engine: str, session: onnxruntime.InferenceSession, samples: list[dict[str, Any]]) -> dict[str, Any]:
    names = [output.name for output in session.get_outputs()]
    return {
        f"{engine}.{number}.{name}": array
        for number, sample in enumerate(samples)
        for name, array in zip(names, session.run(names, sample), strict=True)
    }


def main() -> int:
    """Do the work."""
    return serve(Work, lambda work, show: do(work))
