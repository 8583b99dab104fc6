"""Prove modules while they are written: the original and what was stored, segment by segment, on the same inputs."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgeglm.errors import AccuracyError, DamagedFileError, EdgeglmError
from edgeglm.export.graph.assemble import segments, stack_of
from edgeglm.export.model import Part
from edgeglm.export.prepare.module import is_position, serialize
from edgeglm.export.prepare.types import Prepared, PreparedModule
from edgeglm.export.prove.fp16_arithmetic import HalfGraph
from edgeglm.export.prove.onnx_run import check_loads, decode_file, run_file
from edgeglm.export.prove.overflow import Magnitudes, probe_graph
from edgeglm.export.prove.probes import (
    ENCODER_INPUTS,
    chat_prompts,
    embed,
    prompt_inputs,
    shipped_prompts,
    special_prompts,
)
from edgeglm.export.prove.reference import OriginalWeights, Segment, run_segment
from edgeglm.export.prove.values import Values, feeds, passed_on, relative_error, two_digits
from edgeglm.export.quantize.embedding import gather
from edgeglm.export.quantize.restore import StoredWeights
from edgeglm.export.trace.tracer import Traced
from edgeglm.export.write.output import OutputFile
from edgeglm.export.write.writer import BundleWriter

# Up to here the emitted file itself is run; beyond, its weights are compared as they are stored.
ENGINE_BYTES = 64 << 20
# An output that is as far from the original as zero would be is garbage, whatever the precision.
MAX_ERROR = 1.0


class Prover:
    """The shared inputs of a bundle's proofs: the prompts, and the original's features of the pictures."""

    def __init__(self, prepared: Prepared, writer: BundleWriter) -> None:
        self.prepared, self.writer = prepared, writer
        self.source = prepared.checkpoint
        self.prompts = shipped_prompts(prepared) or chat_prompts(prepared)

    def begin(self, module: PreparedModule, output: OutputFile) -> EmbeddingProof | StackProof:
        """Start the proof of a module that is about to be written."""
        if module.choice.is_table:
            return EmbeddingProof(self, module, output)
        return (HalfProof if module.choice.half else StackProof)(self, module, output)

    def inputs(self, module: PreparedModule) -> list[Values]:
        """Return what a module is given: the pictures, or the prompts with the pictures' features.

        Behind them may come what its values are looked at with; as no user writes such prompts, they are in no error.
        """
        if kind := module.choice.encodes:
            return [ENCODER_INPUTS[kind](self.prepared, prompt) for prompt in self.prompts]
        prompts = [*self.prompts, *(special_prompts(self.prepared) if module.choice.half else [])]
        return [prompt_inputs(self.prepared, prompt, embed(self.prepared, prompt)) for prompt in prompts]


def prove_shape(
    prepared: Prepared, shape: PreparedModule, probe: Traced, writer: BundleWriter, output: OutputFile
) -> float:
    """Prove a vision module's graph for a further grid, whose weights are all written, as the module itself is proven.

    Args:
        prepared: The export.
        shape: The graph, with its positions and the module's weights.
        probe: The traces that the original is computed with at that grid.
        writer: Of the bundle.
        output: The file of weights.

    Returns:
        The largest relative error over the probes.
    """
    vision = prepared.model.vision
    assert vision is not None
    assert shape.grid is not None
    model = replace(prepared.model, vision=replace(vision, grid=shape.grid))
    proof = Prover(replace(prepared, model=model, probe=probe), writer).begin(shape, output)
    proof.advance(frozenset())
    return proof.finish()


class EmbeddingProof:
    """The stored rows of the prompts' tokens against the checkpoint's."""

    wide: tuple[str, ...] = ()

    def __init__(self, prover: Prover, module: PreparedModule, output: OutputFile) -> None:
        self.prover, self.module, self.output = prover, module, output

    def advance(self, left: frozenset[int]) -> None:
        """Wait until all is written."""

    def finish(self) -> float:
        """Return the largest relative error over the prompts."""
        (job,), (offsets,) = self.module.jobs, self.module.layout.offsets
        errors = []
        for prompt in self.prover.prompts:
            parts = zip(job.stored.parts, offsets, strict=True)
            stored = gather([self._rows(*part, prompt.tokens) for part in parts], np.arange(len(prompt.tokens)))
            original = np.concatenate(
                [self.prover.source.rows(job.stored.names[0], token, token + 1) for token in prompt.tokens]
            )
            errors.append(relative_error(stored, original))
        return _checked(self.module, max(errors))

    def _rows(self, part: Part, offset: int, tokens: Sequence[int]) -> NDArray[Any]:
        line = part.nbytes // part.shape[0]
        raw = b"".join(os.pread(self.output.descriptor, line, offset + token * line) for token in tokens)
        return np.frombuffer(raw, part.dtype.numpy()).reshape(len(tokens), *part.shape[1:])


class StackProof:
    """A stack of blocks: each segment is computed as soon as its weights are written."""

    runtime = "ONNX Runtime"

    def __init__(self, prover: Prover, module: PreparedModule, output: OutputFile) -> None:
        self.prover, self.module, self.output = prover, module, output
        self.inputs, stack = prover.inputs(module), stack_of(module.choice.name, prover.prepared.probe)
        self.segments = segments(stack, "portable")
        self.upcoming = next(self.segments, None)
        self.needs: dict[str, set[int]] = {}
        for index, job in enumerate(module.jobs):
            segment = "front" if is_position(job.stored) else stack.segment_of(job.stored.names[0])
            self.needs.setdefault(segment, set()).add(index)
        stored = [
            (job.stored, offsets)
            for job, offsets in zip(module.jobs, module.layout.offsets, strict=True)
            if not is_position(job.stored)
        ]
        self.wide: tuple[str, ...] = ()
        self.original = OriginalWeights(prover.source)
        self.stored = StoredWeights(output.descriptor, stored, module.choice.dialect, prover.source)
        self.engine = module.layout.nbytes <= ENGINE_BYTES and self._is_whole()
        self.want = [dict(values) for values in self.inputs]
        self.got = [dict(values) for values in self.inputs]

    def _is_whole(self) -> bool:
        """Return whether the probe has the picture's whole grid."""
        probe, model = self.prover.prepared.probe.model.vision, self.prover.prepared.model.vision
        return not self.module.choice.is_image or probe == model

    def advance(self, left: frozenset[int]) -> None:
        """Compute the segments whose weights are all written; `left` are the jobs that are not."""
        while self.upcoming and not self.needs.get(self.upcoming[0], set()) & left:
            _, segment = self.upcoming
            with np.errstate(all="ignore"):  # what is not finite in the end is said there
                for values in [] if self.engine else self.got:
                    values.update(passed_on(run_segment(segment, self.stored, feeds(segment.graph.inputs, values))))
                self._compute_original(segment)
            self.upcoming = next(self.segments, None)

    def _compute_original(self, segment: ir.Model) -> None:
        for values in self.want:
            values.update(passed_on(run_segment(segment, self.original, feeds(segment.graph.inputs, values))))

    def finish(self) -> float:
        """Return the largest relative error of the module's output over the prompts.

        Raises:
            EdgeglmError: The engine cannot load what was emitted.
            AccuracyError, DamagedFileError: What was emitted, or already the original, computes garbage.
        """
        path, result = (
            self.prover.writer.path(self.module.file),
            self.module.choice.result,
        )
        assert self.upcoming is None, f"{self.upcoming} was never written"
        try:
            self._run(path)
        except EdgeglmError:
            raise
        except Exception as error:
            why = f"{self.runtime} refuses what was emitted: {str(error).splitlines()[0]}"
            raise EdgeglmError(self.module.file, why, "this is a bug in edgeglm, please report it") from error
        judged = range(len(self.prover.prompts))
        for prompt, want in zip(self.prover.prompts, self.want, strict=False):
            if self.module.choice.is_image and prompt.is_image.any():
                prompt.features = want[result]
        self._check_finite(result, judged)
        return _checked(self.module, max(relative_error(self.got[i][result], self.want[i][result]) for i in judged))

    def _run(self, path: Path) -> None:
        """Run the emitted file on the probes, or only load it."""
        assert self.module.graph is not None
        if not self.engine:
            check_loads(path)
        elif self.module.choice.is_decoder and self.module.choice.kind.contrib:
            self.got = [{"logits": logits} for logits in decode_file(path, self.inputs)]
        else:
            graph_inputs = self.module.graph.graph.inputs
            self.got = [run_file(path, feeds(graph_inputs, values)) for values in self.inputs]

    def _check_finite(self, result: str, judged: Iterable[int]) -> None:
        name = self.module.choice.name
        finite = [bool(np.isfinite(want[result]).all()) for want in self.want]
        if not all(finite[index] for index in judged):
            why = f"computes NaN or infinity in its {name}"
            raise DamagedFileError(self.prover.source.folder, why, "download the checkpoint again")
        for got, may_be in zip(self.got, finite, strict=True):
            if may_be and not np.isfinite(got[result]).all():
                self._refuse_infinite()

    def _refuse_infinite(self) -> None:
        why = f"computes NaN or infinity in {self.module.choice.stated}, where the original does not"
        raise AccuracyError(self.module.file, why, f"export {self.module.choice.name} in another precision")


class HalfProof(StackProof):
    """A stack in half precision for an accelerator: what fp16 does not hold is kept in fp32, and then its graph is run.

    It is run as it was emitted, in the accelerator's arithmetic, whatever its size.
    """

    def __init__(self, prover: Prover, module: PreparedModule, output: OutputFile) -> None:
        super().__init__(prover, module, output)
        self.engine, self.magnitudes = True, Magnitudes(prover.prepared, module)
        self.overflow: str | None = None

    def _compute_original(self, segment: ir.Model) -> None:
        self.magnitudes.next_segment(segment)
        computed, outputs = Segment(segment, self.original), [f"{value.name}" for value in segment.graph.outputs]
        for values in self.want:
            found = computed.run_all(feeds(segment.graph.inputs, values))
            self.magnitudes.see(found)
            values.update(passed_on({name: found[name] for name in outputs}))
            del found  # before the next prompt's

    def _run(self, path: Path) -> None:
        assert self.module.graph is not None
        self.wide = self.magnitudes.keep_in_range(self.module.graph)
        if self.wide:
            self.prover.writer.small(self.module.file, serialize(self.module.graph))
        check_loads(path)
        model = self.module.graph
        if not self._is_whole():
            model = probe_graph(self.prover.prepared, self.module)
            self.magnitudes.keep_in_range(model)
        graph, self.got = HalfGraph(ir.to_proto(model), path.parent), []
        for values in self.inputs:
            self.got.append(graph.run(feeds(model.graph.inputs, values)))
            self.overflow = self.overflow or graph.overflow

    def _refuse_infinite(self) -> None:
        name = self.module.choice.name
        where = self.magnitudes.origins.get(f"{self.overflow}", self.overflow)
        why = f"the result of {where} overflows in fp16, where the original does not"
        raise AccuracyError(self.module.file, why, f"export it with --precision {name}=fp32")


def _checked(module: PreparedModule, error: float) -> float:
    if error > MAX_ERROR:
        why = f"its output is {error:.2g} away from the original's, relative to it"
        raise AccuracyError(module.choice.name, why, f"use a higher precision than {module.choice.stated}")
    return two_digits(error)
