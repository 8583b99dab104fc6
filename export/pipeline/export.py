"""Write a bundle: every weight read once, in pieces, each module proven as it is written."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby
from operator import itemgetter
from pathlib import Path

import msgspec

from edgeglm import manifest
from edgeglm.bundle import read_manifest
from edgeglm.export.evaluate.report.data import Report as PageData
from edgeglm.export.evaluate.report.page import render
from edgeglm.export.graph.slots import SLOTS
from edgeglm.export.model import Stored
from edgeglm.export.pipeline.self_test import UNSURE, own_assets
from edgeglm.export.predict.forecast import predict_slots
from edgeglm.export.prefix.ship import ship_prefixes
from edgeglm.export.prepare.entry import describe_module, describe_shape
from edgeglm.export.prepare.identity import Unchanged, identify, is_source_of, job_name, weights_sha256
from edgeglm.export.prepare.module import serialize
from edgeglm.export.prepare.types import Prepared, PreparedModule
from edgeglm.export.prove.probes import Example
from edgeglm.export.prove.prover import Prover, prove_shape
from edgeglm.export.prove.slots import prove_slots
from edgeglm.export.quantize.stream import WORKERS, Piece
from edgeglm.export.targets.base import compile_step, write_step
from edgeglm.export.write.layout import write
from edgeglm.export.write.output import OutputFile
from edgeglm.export.write.reuse import Found, Reuse
from edgeglm.export.write.writer import BundleWriter

# Pieces that are encoded before their turn to be written comes.
AHEAD = 2


@dataclass(frozen=True)
class Progress:
    """The progress of an export: bytes of the module's file that are written, of how many."""

    module: str
    done: int
    total: int


Report = Callable[[Progress], None]


def export(  # noqa: PLR0913 (until requests are frozen dataclasses)
    prepared: Prepared,
    target: Path,
    predicted: manifest.Predicted,
    report: Report,
    *,
    resume: bool = True,
    reuse: Reuse | None = None,
    measured: manifest.Measured | None = None,
    carry_test: bool = True,
    ships: bool = True,
    held_out: Sequence[Example] = (),
) -> tuple[manifest.Manifest, tuple[str, ...]]:
    """Write the bundle; returns its manifest and what the user should know.

    Args:
        prepared: What is written.
        target: The bundle's folder.
        predicted: What the manifest says of memory.
        report: Is told of progress.
        resume: Whether an earlier run's partial bundle is finished.
        reuse: What earlier exports have stored alike is copied from them; it learns what this one has.
        measured: What the manifest says of the bundle's accuracy.
        carry_test: Whether it gets a self-test, which costs a pass over the original.
        ships: Whether it gets the state behind the prefixes that were asked for.
        held_out: What the self-test is made of.

    Raises:
        UsageError, BudgetError: Of the target or its disk.
        DamagedFileError, UnsupportedError: A weight cannot be read, changes meanwhile, or does not fit the precision.
    """
    config, unchanged = _config_sha256(prepared), Unchanged(prepared)
    made_of = f"{unchanged.identity} {prepared.request.equalizes}"
    opened = BundleWriter(
        target,
        prepared.key(),
        resume=resume,
        source=identify(prepared.checkpoint),
        holds=partial(is_source_of, prepared),
    )
    with opened as writer, ThreadPoolExecutor(WORKERS) as pool:
        notes = [writer.note] if writer.note else []
        if writer.resumed_jobs:
            notes.append(f"resuming a partial bundle: {writer.resumed_jobs} weights are written already")
        ours = [module for module in prepared.modules if not module.choice.is_converted]
        outputs = {module: writer.file(module.weights_file, module.layout.nbytes) for module in ours}
        for module in ours:
            _write_graph(module, writer)
        for name, data in prepared.sidecars.items():
            writer.small(name, data)
        prover, modules = Prover(prepared, writer), list[manifest.Module]()
        for module in prepared.modules:
            if step := write_step(module.choice):
                share, known = partial(_report, report, module), (reuse or Reuse()).converted
                modules.append(step.write(prepared, module, writer, prover, share, known))
                continue
            output = outputs[module]
            if reuse:
                _copy(module, output, writer, reuse, made_of)
            modules.append(_export_module(prepared, module, output, writer, pool, prover, report))
        notes += [_wide_note(module) for module in modules if module.fp32_values]
        if carry_test and not prepared.request.shipped:
            notes += _write_self_test(prepared, modules, writer, held_out)
        unchanged.check(writer.notes)
        made = _manifest(prepared, tuple(modules), predicted, writer, config)
        if measured:
            made = msgspec.structs.replace(made, measured=measured)
        writer.small("report.html", _page(prepared, made, writer).encode())
        if ships and prepared.request.prefixes:
            made = ship_prefixes(made, writer, prepared.request.prefixes)
        path = writer.finish(made)
    if reuse:
        for module in ours:
            reuse.add(module.choice, _written(module, writer, path / module.weights_file, made_of))
    return read_manifest(path), tuple(notes)


def _wide_note(module: manifest.Module) -> str:
    first, *more = module.fp32_values
    others = f" and {len(more)} more" if more else ""
    return f"{module.name}: {first}{others} in fp32, since their values are too large for fp16"


def _write_self_test(
    prepared: Prepared, modules: Sequence[manifest.Module], writer: BundleWriter, held_out: Sequence[Example]
) -> list[str]:
    """Write what the bundle proves itself by; returns a note where it cannot."""
    if prepared.opened.checkpoint.sidecar("tokenizer.json") is None:
        return []
    assets = own_assets(prepared, sum(module.max_relative_error or 0.0 for module in modules), held_out)
    for name, data in assets.items():
        writer.small(name, data)
    return [] if assets else [UNSURE]


def _report(report: Report, module: PreparedModule, share: float) -> None:
    report(Progress(module.choice.name, int(share * module.layout.nbytes), module.layout.nbytes))


def _written(module: PreparedModule, writer: BundleWriter, file: Path, source: str) -> Iterator[tuple[Stored, Found]]:
    for index, (job, offsets) in enumerate(zip(module.jobs, module.layout.offsets, strict=True)):
        name = job_name(module, index)
        written = writer.written(name, module.weights_file)
        yield job.stored, Found(source, file, offsets, writer.note_of(name), written)


def _export_module(
    prepared: Prepared,
    module: PreparedModule,
    output: OutputFile,
    writer: BundleWriter,
    pool: ThreadPoolExecutor,
    prover: Prover,
    report: Report,
) -> manifest.Module:
    name, total = module.choice.name, module.layout.nbytes
    proof = prover.begin(module, output)
    open_jobs = [(index, job) for index, job in enumerate(module.jobs) if not writer.done(job_name(module, index))]
    stream = _encoded(((index, task) for index, job in open_jobs for task in job.tasks()), pool)
    left = {index for index, _ in open_jobs}
    # Proofs follow in a thread of their own, so that the disk and the encoders need not wait for them.
    with _cancelled(ThreadPoolExecutor(1)) as follower:
        steps = [follower.submit(proof.advance, frozenset(left))]
        for index, group in groupby(stream, key=itemgetter(0)):
            job, offsets = module.jobs[index], module.layout.offsets[index]
            digests: dict[str, hashlib._Hash] = {}
            write(_hashed((piece for _, piece in group), digests), job.stored, offsets, output)
            writer.complete(job_name(module, index), " ".join(digest.hexdigest() for digest in digests.values()))
            left.discard(index)
            steps.append(follower.submit(proof.advance, frozenset(left)))
            report(Progress(name, max(offsets) + job.stored.parts[-1].nbytes, total))
        report(Progress(name, total, total))
        for done in steps:
            done.result()
    error, compiled = proof.finish(), None
    if step := compile_step(module.choice):
        compiled, error = step.compile_module(prepared, module, writer)
    probes = zip(module.shapes, prepared.shape_probes, strict=True) if module.shapes else ()
    shapes = tuple(
        describe_shape(shape, prove_shape(prepared, shape, probe, writer, output)) for shape, probe in probes
    )
    described = describe_module(module, error, compiled, proof.wide, shapes)
    described = msgspec.structs.replace(described, products=prepared.product_errors(module.choice))
    if not module.slots:
        return described
    fixed, token = predict_slots(prepared, SLOTS)
    slots = manifest.Slots(
        file=module.slots_file,
        count=SLOTS,
        rss_bytes=fixed,
        token_rss_bytes=token,
        max_relative_error=prove_slots(module, writer),
    )
    return msgspec.structs.replace(described, slots=slots)


def _copy(module: PreparedModule, output: OutputFile, writer: BundleWriter, reuse: Reuse, source: str) -> None:
    for index, (job, offsets) in enumerate(zip(module.jobs, module.layout.offsets, strict=True)):
        found = None if writer.done(job_name(module, index)) else reuse.find(module.choice, job.stored, source)
        if found:
            found.copy(job.stored, offsets, output)
            writer.complete(job_name(module, index), found.note)


@contextmanager
def _cancelled(pool: ThreadPoolExecutor) -> Iterator[ThreadPoolExecutor]:
    """Use a pool; on an error or interrupt cancel what has not begun."""
    with pool:
        try:
            yield pool
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _encoded(tasks: Iterable[tuple[int, Callable[[], Piece]]], pool: ThreadPoolExecutor) -> Iterator[tuple[int, Piece]]:
    """Run tasks in the pool, a few ahead, and yield their results in their order."""
    waiting: deque[tuple[int, Future[Piece]]] = deque()
    try:
        for index, task in tasks:
            waiting.append((index, pool.submit(task)))
            if len(waiting) >= WORKERS + AHEAD:
                yield _next(waiting)
        while waiting:
            yield _next(waiting)
    finally:
        for _, future in waiting:
            future.cancel()


def _next(waiting: deque[tuple[int, Future[Piece]]]) -> tuple[int, Piece]:
    index, future = waiting.popleft()
    return index, future.result()


def _hashed(pieces: Iterable[Piece], digests: dict[str, hashlib._Hash]) -> Iterator[Piece]:
    """Pass pieces on, with the hash of the checkpoint's bytes they came from kept by tensor; then let those go."""
    for piece in pieces:
        digests.setdefault(piece.origin, hashlib.sha256()).update(piece.source.data)
        yield replace(piece, source=piece.source[:0])


def _config_sha256(prepared: Prepared) -> str:
    return hashlib.sha256((prepared.checkpoint.folder / "config.json").read_bytes()).hexdigest()


def _write_graph(module: PreparedModule, writer: BundleWriter) -> None:
    for shape in (module, *module.shapes):
        if shape.graph is not None:
            writer.small(shape.file, serialize(shape.graph))
    if module.slots:
        writer.small(module.slots_file, module.slots)


def _manifest(
    prepared: Prepared,
    modules: tuple[manifest.Module, ...],
    predicted: manifest.Predicted,
    writer: BundleWriter,
    config_sha256: str,
) -> manifest.Manifest:
    return manifest.Manifest(
        model=prepared.manifest_model(),
        profile=prepared.request.profile,
        modules=modules,
        generation=prepared.opened.generation,
        provenance=manifest.Provenance(
            config_sha256=config_sha256,
            weights_sha256=weights_sha256(prepared, writer.notes),
            calibration_sha256=prepared.calibration.sha256 if prepared.calibration else None,
            versions=prepared.versions(),
            options=prepared.options(),
        ),
        predicted=predicted,
        files={},
    )


def _page(prepared: Prepared, made: manifest.Manifest, writer: BundleWriter) -> str:
    """Return the report, with the accuracy where it was measured."""
    sizes = {
        module.name: sum(file.stat().st_size for file in writer.path(module.name).iterdir()) for module in made.modules
    }
    return render(PageData.of(made, sizes, prepared.checkpoint.total_bytes))
