"""Prepare one module: its graph, lowered for its engine, and the jobs that store its weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import onnx_ir as ir

from edgeglm.devices.profile import Profile
from edgeglm.engines import Dialect
from edgeglm.errors import DamagedFileError, UnsupportedError, UsageError
from edgeglm.export.checkpoint.reader import Checkpoint
from edgeglm.export.graph.assemble import build, stack_of
from edgeglm.export.graph.conform import fit
from edgeglm.export.graph.half_state import store_half
from edgeglm.export.graph.position_embedding import position_embedding
from edgeglm.export.graph.slots import SLOTS, with_slots
from edgeglm.export.graph.violation import Violation
from edgeglm.export.model import Choice, Grid, Model, Part, Stored
from edgeglm.export.prepare.types import (
    WEIGHTS,
    Calibration,
    Job,
    PreparedModule,
)
from edgeglm.export.quantize.embedding import embedding_parts, encode_embedding
from edgeglm.export.quantize.graph import quantize_graph
from edgeglm.export.quantize.kept import kept_scheme
from edgeglm.export.quantize.qdq import lower_to_integers
from edgeglm.export.quantize.rounding import check_range
from edgeglm.export.quantize.schemes import Codes, Fp16, Fp32, NpuInt8, Scheme, parse_scheme, with_range
from edgeglm.export.quantize.storage import encode, parts
from edgeglm.export.quantize.stream import Chunk, Piece, chunks, encode_chunk
from edgeglm.export.trace.tracer import Traced
from edgeglm.export.write.layout import Layout, bind, lay_out
from edgeglm.suggest import nearest_name

POSITION = "position"


def prepare_module(
    choice: Choice,
    profile: Profile,
    traced: Mapping[tuple[Dialect, bool], Traced],
    checkpoint: Checkpoint,
    calibration: Calibration | None,
    shapes: Sequence[Traced] = (),
) -> PreparedModule:
    """Return a module of one choice, with all but its weights.

    Args:
        choice: What it is, and how it is made.
        profile: The device.
        traced: The traces, by dialect and half precision.
        checkpoint: Where the weights are.
        calibration: What they are encoded by, if anything.
        shapes: The same traces for further grids of a vision module's picture, which share its weights.

    Raises:
        UnsupportedError: Its engine does not take a node of it, or its checkpoint is of another shape.
        UsageError: The choice names a part that it has not.
    """
    if choice.is_table:
        return _embedding(choice, next(iter(traced.values())).model, checkpoint)
    lowered = _lower(choice, profile, traced[choice.dialect, choice.half], checkpoint, calibration)
    others = [_lower(choice, profile, shape, checkpoint, calibration) for shape in shapes]
    # The proof reads the same rows again in a moment, and then lets the page cache go of them.
    kept = replace(checkpoint, keep_pages=True)
    weights = [Job(stored, partial(_tasks, stored, kept, choice.dialect, calibration)) for stored in lowered.stored]
    # The further positions come last, so that one more shape moves nothing.
    positions = [job for other in others for job in other.positions]
    assert all(other.stored == lowered.stored for other in others), "shapes differ in more than their positions"
    jobs = (*lowered.positions, *weights, *positions)
    layout = lay_out([job.stored for job in jobs])
    whole = PreparedModule(choice, jobs, layout, lowered.graph, parts=lowered.named, fixes=lowered.fixes)
    places = dict(zip(map(id, jobs), layout.offsets, strict=True))

    def bound(graph: ir.Model, positions: Sequence[Job], grid: Grid | None) -> PreparedModule:
        own = (*positions, *weights)
        held = Layout(tuple(places[id(job)] for job in own), layout.nbytes)
        bind(graph, [job.stored for job in own], held, WEIGHTS)
        return replace(whole, jobs=own, layout=held, graph=graph, graph_bytes=len(serialize(graph)), grid=grid)

    main = bound(lowered.graph, lowered.positions, None)
    more = tuple(bound(other.graph, other.positions, other.grid) for other in others)
    return replace(main, jobs=jobs, layout=layout, shapes=more, slots=_slots(choice, lowered.graph))


def _slots(choice: Choice, graph: ir.Model) -> bytes | None:
    """Return a decoder's graph for several sequences, bound to the same weights, where it may have one."""
    slotted = with_slots(graph, SLOTS) if choice.is_decoder and choice.kind.contrib else None
    return serialize(slotted) if slotted else None


@dataclass(frozen=True)
class _Lowered:
    """A module's graph for its engine, with the weights that it takes: a vision module's positions, and the rest."""

    graph: ir.Model
    grid: Grid | None
    positions: tuple[Job, ...]
    stored: tuple[Stored, ...]
    named: tuple[str, ...]
    fixes: tuple[Violation, ...]


def _lower(
    choice: Choice, profile: Profile, found: Traced, checkpoint: Checkpoint, calibration: Calibration | None
) -> _Lowered:
    stack, vision = stack_of(choice.name, found), found.model.vision if choice.is_image else None
    graph = build(stack, choice.kind.traced or choice.dialect)
    positions = (_position_job(graph, found.model, checkpoint, choice),) if vision else ()
    ranges = calibration.ranges if calibration else {}

    def scheme_of(names: Sequence[str]) -> Scheme:
        asked = parse_scheme(choice.precision_of(stack.segment_of(names[0])))
        weights = [checkpoint.tensors.get(f"{name}.weight") for name in names]
        return kept_scheme(with_range(asked, ranges.get(f"{names[0]}.weight")), weights, choice.dialect)

    named: tuple[str, ...] = ()
    if choice.kind.integers:  # in one precision, for all of its parts
        stored = _integers(graph, choice, calibration)
    else:
        stored = tuple(quantize_graph(graph, choice.dialect, scheme_of))
        named = tuple(dict.fromkeys(stack.segment_of(weight.names[0]) for weight in stored if weight.columns > 1))
    _check_parts(choice, named)
    if choice.is_decoder and choice.kv == "fp16":
        store_half(graph)
    assert choice.engine is not None
    fixes: tuple[Violation, ...] = ()
    if not choice.is_converted:
        graph, fixes = fit(graph, profile, choice.engine, choice.name)
    return _Lowered(graph, vision.grid if vision else None, positions, stored, named, fixes)


def _integers(graph: ir.Model, choice: Choice, calibration: Calibration | None) -> tuple[Stored, ...]:
    """Lower to what an NPU computes, with the ranges of the calibration; without one, for the sizes alone."""
    scheme = parse_scheme(choice.precision)
    assert isinstance(scheme, NpuInt8)
    values = calibration.values.get(scheme.bits, {}) if calibration else {}
    return lower_to_integers(graph, scheme, values, [POSITION])


def is_position(stored: Stored) -> bool:
    """Return whether it is the position embedding, which is computed from the checkpoint's table."""
    return stored.initializers[0] in (POSITION, f"{POSITION}.weight")


def _check_parts(choice: Choice, known: tuple[str, ...]) -> None:
    """Check that all parts that were named exist. Raises UsageError."""
    for part, precision in choice.parts:
        if part not in known:
            what = f"--precision {choice.name}.{part}={precision}"
            remedy = nearest_name(part, known) if known else f"write {choice.name}={precision}"
            raise UsageError(what, f"the {choice.name} has no such part", remedy)


def serialize(graph: ir.Model) -> bytes:
    """Return the bytes of ``model.onnx``, the same for the same graph."""
    return bytes(ir.to_proto(graph).SerializeToString(deterministic=True))


def _tasks(
    stored: Stored, source: Checkpoint, dialect: Dialect, calibration: Calibration | None
) -> Iterator[Callable[[], Piece]]:
    inputs, divisors = (calibration.inputs, calibration.divisors) if calibration else ({}, {})
    known = inputs.get(stored.names[0])
    for chunk in chunks(stored, source):
        encode = partial(encode_chunk, chunk, stored, source, dialect, known, divisors.get(chunk.origin))
        yield partial(_explained, source, chunk.origin, encode)


def _explained(source: Checkpoint, name: str, encode: Callable[[], Piece]) -> Piece:
    """Encode, and name file and tensor where the weights do not allow it."""
    try:
        return encode()
    except OverflowError as error:
        remedy = "export it in another precision"
        raise UnsupportedError(_where(source, name), str(error), remedy) from error
    except ValueError as error:
        raise DamagedFileError(_where(source, name), str(error), "download it again") from error


def _where(source: Checkpoint, name: str) -> str:
    """Return the files that a weight is made of, an adapter's among them, and its name."""
    files = dict.fromkeys(map(str, source.find(name).files))
    return f"{' with '.join(files)}: {name}"


def _embedding(choice: Choice, model: Model, checkpoint: Checkpoint) -> PreparedModule:
    _check_parts(choice, ())
    decoder, scheme = model.decoder, parse_scheme(choice.precision)
    parts = embedding_parts(scheme, decoder.vocabulary, decoder.hidden)  # type: ignore[arg-type]
    names = tuple(part.suffix for part in parts)
    stored = Stored((decoder.embedding,), decoder.vocabulary, decoder.hidden, scheme, parts, names)

    def encode(chunk: Chunk) -> Piece:
        raw = checkpoint.read_bytes(chunk.origin, chunk.begin, chunk.end)
        rows = encode_embedding(scheme, checkpoint.decode(chunk.origin, raw))  # type: ignore[arg-type]
        return Piece(chunk.start, rows, chunk.origin, raw)

    def tasks() -> Iterator[Callable[[], Piece]]:
        for chunk in chunks(stored, checkpoint):
            yield partial(_explained, checkpoint, chunk.origin, partial(encode, chunk))

    job = Job(stored, tasks)
    return PreparedModule(choice, (job,), lay_out([stored]))


def _position_job(graph: ir.Model, model: Model, checkpoint: Checkpoint, choice: Choice) -> Job:
    """Turn the position embedding, an input of the trace, into a weight for the one grid."""
    vision = model.vision
    assert vision is not None
    value = next(tensor for tensor in graph.graph.inputs if tensor.name == POSITION)
    assert value.dtype is not None
    rows, dtype, table = (
        vision.grid[0] * vision.grid[1],
        value.dtype,
        vision.position,
    )
    count, *columns = checkpoint.find(table).shape
    if columns != [vision.hidden] or round(count**0.5) ** 2 != count:
        why = f"has shape {[count, *columns]}, expected a square of positions x {vision.hidden}"
        raise DamagedFileError(f"{checkpoint.find(table).file}: {table}", why, "download the whole checkpoint again")
    scheme: Scheme = Fp16() if dtype == ir.DataType.FLOAT16 else Fp32()
    if isinstance(integers := parse_scheme(choice.precision), NpuInt8):
        scheme = Codes(integers.bits)
        stored_parts = parts(scheme, "qdq", rows, vision.hidden)
        names = tuple(f"{POSITION}.{part.suffix}" for part in stored_parts)
    else:
        graph.graph.inputs.remove(value)
        graph.graph.initializers[POSITION] = value
        stored_parts, names = (Part("data", dtype, (rows, vision.hidden), 0),), (POSITION,)
    stored = Stored((table,), rows, vision.hidden, scheme, stored_parts, names)

    def embed() -> Piece:
        raw = checkpoint.read_bytes(table)
        embedded = position_embedding(checkpoint.decode(table, raw), vision.grid, vision.merge)
        if isinstance(scheme, Codes):
            return Piece(0, encode(scheme, "qdq", embedded), table, raw)
        check_range(np.abs(embedded), dtype.numpy())
        return Piece(0, (embedded.astype(dtype.numpy()),), table, raw)

    return Job(stored, lambda: iter([partial(_explained, checkpoint, table, embed)]))
