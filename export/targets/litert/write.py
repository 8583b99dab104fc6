"""Write a module as TFLite: a process of its own converts it, and LiteRT proves it against the original.

A file holds as many blocks as have few enough weights, so that memory is bounded by that, or by one block.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, cast

import numpy as np

from edgeglm import manifest
from edgeglm.errors import EdgeglmError
from edgeglm.export.choose.precision import NPU_PRECISIONS, is_measured
from edgeglm.export.model import Choice
from edgeglm.export.prepare.identity import identify
from edgeglm.export.prepare.types import Opened, Prepared, PreparedModule
from edgeglm.export.prove.probes import PROBES
from edgeglm.export.prove.prover import Prover, StackProof
from edgeglm.export.prove.values import Values
from edgeglm.export.samples.screenshots import Sample, read_samples
from edgeglm.export.targets.litert.convert_task import Report, Span, Task
from edgeglm.export.targets.litert.npu import compile_on_npu
from edgeglm.export.targets.litert.sizes import CALIBRATE_BYTES, CHUNK, all_scores, files_of
from edgeglm.export.write.converted import Converted
from edgeglm.export.write.describe import describe_vision
from edgeglm.export.write.output import OutputFile
from edgeglm.export.write.writer import BundleWriter
from edgeglm.runtimes.engines.litert.engine import ENCODE, Decoder, Encoder
from edgeglm.runtimes.engines.litert.file import DECODE, File
from edgeglm.runtimes.inputs.image import to_patches
from edgeglm.scratch import scratch_folder
from edgeglm.worker import Crashed, Worker

PICTURES = 16
CONVERTER = Worker("edgeglm.export.targets.litert.convert_worker", Report, "the converter")
Share = Callable[[float], None]


def write(
    prepared: Prepared,
    module: PreparedModule,
    writer: BundleWriter,
    prover: Prover,
    share: Share,
    converted: Converted,
) -> manifest.Module:
    """Convert a module into the bundle, or find that an earlier run or export has, and prove it.

    Args:
        prepared: The model.
        module: What is written.
        writer: Of the bundle.
        prover: Computes the original.
        share: Is told which share is done.
        converted: What earlier exports have converted.

    Raises:
        BudgetError: Memory was too short for the converter.
        UnsupportedError: The NPU's compiler refuses it.
        AccuracyError, DamagedFileError: What was written, or already the original, computes garbage.
    """
    name = module.choice.name
    files = {f"{name}/{file}": span for file, span in files_of(prepared.opened, name).items()}
    jobs = [*(f"{name}/{index}" for index in range(len(module.jobs))), f"{name}/choice"]
    if not all(map(writer.done, jobs)):
        last = _convert(prepared, module, files, writer, share, converted)
        outputs = _outputs(files, writer)
        for output in outputs:
            output.adopt()
        for key, job in zip(jobs, module.jobs, strict=False):
            writer.complete(key, " ".join(last.sha256[tensor] for tensor in dict.fromkeys(job.stored.names)))
        writer.complete(jobs[-1], " ".join([last.precision, *(f"{key}={value}" for key, value in last.errors.items())]))
    else:
        outputs = _outputs(files, writer)
    share(1.0)
    precision, *tried = writer.note_of(jobs[-1]).split()
    proof = LitertProof(prover, module, outputs[0], [writer.path(file) for file in files])
    proof.advance(frozenset())
    error, file, compiled = proof.finish(), next(iter(files)), None
    if module.choice.placement == "npu":
        compiled = compile_on_npu(prepared, module, writer, file, proof.inputs, proof.got)
    return manifest.Module(
        name=name,
        file=file,
        format="tflite",
        precision=precision,
        tried={key: float(value) for key, _, value in (pair.partition("=") for pair in tried)},
        placement=module.choice.placement,
        engine="litert",
        inputs=tuple(proof.inputs_of_files.values()),
        outputs=tuple(proof.outputs_of_files.values()),
        max_relative_error=error,
        compiled=compiled,
    )


def _convert(
    prepared: Prepared,
    module: PreparedModule,
    files: Mapping[str, Span],
    writer: BundleWriter,
    share: Share,
    converted: Converted,
) -> Report:
    choice, grid = module.choice, prepared.model.vision.grid if prepared.model.vision else None
    context = prepared.opened.context
    with scratch_folder("tflite") as scratch:
        task = Task(
            str(prepared.checkpoint.folder),
            choice.name,
            choice.precision,
            _candidates(prepared.opened, choice),
            context,
            min(CHUNK, context),
            grid,
            {str(writer.path(file)): span for file, span in files.items()},
            _pictures(prepared, scratch) if choice.is_image and len(files) == 1 else None,
            str(prepared.request.adapter) if prepared.request.adapter else None,
        )
        paths, key = {Path(name).name: Path(name) for name in task.files}, _key(prepared, task)
        known: Report | None = converted.take(key, paths)
        if known is None:
            for path in paths.values():  # of no whole file, whose bytes other bundles may share
                path.unlink(missing_ok=True)
            converted.make_room(module.layout.nbytes)
            known = _run(task, share)
            converted.keep(key, paths, known)
        return known


def _key(prepared: Prepared, task: Task) -> str:
    """Return a hash of all that a converted module is made from, wherever it is written."""
    files = {Path(name).name: span for name, span in task.files.items()}
    pictures = hashlib.sha256(Path(task.pictures).read_bytes() if task.pictures else b"").hexdigest()
    said = replace(task, files=files, pictures=None), pictures, identify(prepared.checkpoint)
    return hashlib.sha256(repr((*said, sorted(prepared.checkpoint.config.items()))).encode()).hexdigest()


def _candidates(opened: Opened, choice: Choice) -> tuple[str, ...]:
    """Return what the precision of a vision module can mean: one way, or two to choose from by measured error."""
    if choice.placement == "npu":
        return NPU_PRECISIONS if is_measured(opened.request.precision) else (choice.precision,)
    return ("int8", "int8-static") if choice.precision == "int8" else (choice.precision,)


def _pictures(prepared: Prepared, folder: Path) -> str | None:
    """Return the file of patches that ranges are taken from, if there are pictures."""
    vision, samples = prepared.model.vision, prepared.calibration.samples if prepared.calibration else ()
    assert vision is not None
    if all_scores(prepared.opened) > CALIBRATE_BYTES:
        return None
    found: list[Sample] = list(samples[:PICTURES])
    if not found and (shipped := prepared.request.shipped):  # behind those that it is proven on
        found = list(islice(read_samples(shipped.calibration, PROBES + PICTURES), PROBES, None))
    if not found:
        return None
    assert prepared.opened.processor is not None
    described = describe_vision(vision, prepared.opened.processor)
    np.save(folder / "pictures.npy", np.stack([to_patches(sample.image, described) for sample in found]))
    return str(folder / "pictures.npy")


def _run(task: Task, share: Share) -> Report:
    """Have a worker convert, and return its report."""
    what = f"{task.module}: converting to TFLite"
    try:
        return CONVERTER.run(task, what, share)
    except Crashed as error:
        why = f"the converter ended with {error.status}: {error}"
        raise EdgeglmError(what, why, "report it, or export to ONNX") from error


def _outputs(files: Mapping[str, Span], writer: BundleWriter) -> list[OutputFile]:
    """Return the files as the writer knows them: it hashes them at the end."""
    outputs = []
    for file in files:
        path = writer.path(file)
        path.chmod(0o644)  # the quantizer makes them executable
        outputs.append(writer.file(file, path.stat().st_size))
    return outputs


class LitertProof(StackProof):
    """The original, and the emitted files in the session that a device has."""

    runtime = "LiteRT"

    def __init__(self, prover: Prover, module: PreparedModule, output: OutputFile, files: list[Path]) -> None:
        super().__init__(prover, module, output)
        self.engine, self.files = True, files
        self.inputs_of_files: dict[str, manifest.Tensor] = {}
        self.outputs_of_files: dict[str, manifest.Tensor] = {}

    def _run(self, path: Path) -> None:
        opened = [File(file, len(os.sched_getaffinity(0)), None) for file in self.files]
        self._describe(opened)
        if self.module.choice.is_image:
            encoder = Encoder(opened)
            self.got = [encoder.run({"pixel_values": values["pixel_values"]}) for values in self.inputs]
            encoder.close()
            return
        decoder = Decoder(opened, 1)
        self.got = [self._logits(decoder, values) for values in self.inputs]
        decoder.close()

    @staticmethod
    def _logits(decoder: Decoder, values: Values) -> Values:
        decoder.truncate(0)
        return {"logits": decoder.step(values["hidden"], values["position_ids"])[None]}

    def _describe(self, files: list[File]) -> None:
        """Describe inputs and outputs of a step, without what one file only hands to the next."""
        signature = ENCODE if self.module.choice.is_image else DECODE
        inner: set[str] = set()
        for file in files:
            for name, (shape, dtype) in file.inputs(signature).items():
                if name not in inner:
                    self.inputs_of_files.setdefault(name, _tensor(name, shape, dtype))
            inner = {"hidden"}
            for name, (shape, dtype) in file.outputs(signature).items():
                if name != "hidden":
                    self.outputs_of_files[name] = _tensor(name, shape, dtype)


def _tensor(name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> manifest.Tensor:
    return manifest.Tensor(name, cast(manifest.Dtype, dtype.name), shape)
