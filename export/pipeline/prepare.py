"""All of an export that needs no weight: what is chosen, traced and laid out, and so how large everything will be."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgeglm import manifest
from edgeglm.devices.profile import Profile
from edgeglm.errors import DamagedFileError, UnsupportedError, UsageError
from edgeglm.export.check import Offence
from edgeglm.export.checkpoint.files import read_json
from edgeglm.export.checkpoint.reader import Checkpoint
from edgeglm.export.choices import choose, npu_note
from edgeglm.export.demo.samples import Sample
from edgeglm.export.describe import describe_generation, describe_model
from edgeglm.export.emit.onnx import Layout, bind, lay_out
from edgeglm.export.families import FAMILIES
from edgeglm.export.formats import with_formats
from edgeglm.export.model import Choice, Dialect, Grid, Model, Part, Piece, Stored
from edgeglm.export.modules import build, check_weights, decoder_stack, vision_stack
from edgeglm.export.picture import Picture, choose_picture
from edgeglm.export.pipeline.device_limits import check_limits
from edgeglm.export.pipeline.fit import fit
from edgeglm.export.positions import position_embedding
from edgeglm.export.pyz import build_pyz
from edgeglm.export.quantize.embedding import embedding_parts, encode_embedding
from edgeglm.export.quantize.graph import quantize_graph
from edgeglm.export.quantize.qdq import Range, lower_to_integers
from edgeglm.export.quantize.rounding import check_range
from edgeglm.export.quantize.schemes import Codes, Fp16, Fp32, NpuInt8, Scheme, parse_scheme, with_range
from edgeglm.export.quantize.storage import encode, parts
from edgeglm.export.quantize.stream import Chunk, chunks, encode_chunk
from edgeglm.export.trace.request import TraceRequest
from edgeglm.export.trace.tracer import Traced, is_cached, trace
from edgeglm.suggest import nearest_name

# What a device needs beside the weights, where the checkpoint has it.
SIDECARS = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja",
    "preprocessor_config.json", "generation_config.json",
)  # fmt: skip
LIBRARIES = ("edgeglm", "numpy", "onnx", "onnx-ir", "onnxruntime", "onnxscript", "torch", "transformers")
TFLITE_LIBRARIES = ("litert-torch", "litert-converter", "ai-edge-quantizer", "ai-edge-litert")
# Rotary tables inside a graph have a row for each position, so a context without bound would be a file without bound.
MAX_CONTEXT = 32768
# The most patches that the original is computed for.
PROBE_PATCHES = 1024
Arrays = Mapping[str, NDArray[Any]]
POSITION = "position"
# An NPU's integers are lowered from the plain operators in fp32.
TRACED: dict[Dialect, Dialect] = {"qdq": "portable"}
STATIC = "int8-static"
WEIGHTS = "weights.bin"
RUNNER = "run.pyz"


@dataclass(frozen=True)
class Request:
    """What the user asks for; `name` is what the bundle calls the model."""

    folder: Path
    name: str
    profile: Profile
    precision: str = "auto"
    context: int | None = None
    image_size: tuple[int, int] | None = None
    is_demo: bool = False
    format: str = "onnx"


@dataclass(frozen=True)
class Calibration:
    """What a calibration found of the inputs, by the name of the weight they meet: mean squares of channels, ranges.

    ``values`` are ranges of everything that flows through a module for an NPU, by its graph's names: by bits, since
    8 of them want a narrower one than 16. ``candidates`` are the errors that its precisions were found to have, and
    ``shown`` what it was given for that, and what the original makes of it.
    """

    sha256: str
    energies: Mapping[str, NDArray[np.float32]]
    ranges: Mapping[str, Range]
    samples: Sequence[Sample] = ()
    values: Mapping[int, Mapping[str, Range]] = field(default_factory=dict)
    candidates: Mapping[str, float] = field(default_factory=dict)
    shown: Sequence[tuple[Arrays, Arrays]] = ()


@dataclass(frozen=True)
class Job:
    """One stored weight to write: how its chunks are read and encoded."""

    stored: Stored
    tasks: Callable[[], Iterator[Callable[[], Piece]]]


@dataclass(frozen=True)
class PreparedModule:
    """A module whose graph is lowered and whose weights have their places; `graph` is None for the embedding rows.

    `parts` are those of a graph that hold matrices, in the order of computation; `fixes` what the engine would have
    refused.
    """

    choice: Choice
    jobs: tuple[Job, ...]
    layout: Layout
    graph: ir.Model | None = None
    graph_bytes: int = 0
    parts: tuple[str, ...] = ()
    fixes: tuple[Offence, ...] = ()

    @property
    def is_tflite(self) -> bool:
        """Whether a converter writes its files; its graph and the weights' places say only how large they are."""
        return self.choice.engine == "litert"

    @property
    def weights_file(self) -> str:
        """Relative to the bundle."""
        return f"{self.choice.name}/{WEIGHTS if self.graph else 'rows.bin'}"

    @property
    def file(self) -> str:
        """What to open, relative to the bundle."""
        return f"{self.choice.name}/model.onnx" if self.graph else self.weights_file

    @property
    def part_precisions(self) -> dict[str, str]:
        """Of every part."""
        return {part: self.choice.precision_of(part) for part in self.parts}

    @property
    def nbytes(self) -> int:
        """Of all files of the module."""
        return self.layout.nbytes + self.graph_bytes


@dataclass(frozen=True)
class Opened:
    """A checkpoint whose headers were read, and what was chosen for it; nothing is traced yet.

    `requests` are the traces that its modules need, by dialect and whether in half precision; `probe` is the one that
    the original is computed with.
    """

    request: Request
    checkpoint: Checkpoint
    choices: tuple[Choice, ...]
    context: int
    requests: Mapping[tuple[Dialect, bool], TraceRequest]
    probe: TraceRequest
    preprocessor: Mapping[str, Any]
    notes: tuple[str, ...]

    @property
    def is_traced(self) -> bool:
        """Whether the traces are in the cache."""
        return is_cached([*self.requests.values(), self.probe])


@dataclass(frozen=True)
class Prepared:
    """An export that is ready to be written; `probe` are the traces that the original is computed with."""

    opened: Opened
    model: Model
    probe: Traced
    modules: tuple[PreparedModule, ...]
    sidecars: Mapping[str, bytes]
    calibration: Calibration | None = None

    @property
    def request(self) -> Request:
        """What the user asked for."""
        return self.opened.request

    @property
    def checkpoint(self) -> Checkpoint:
        """Where the weights are read from."""
        return self.opened.checkpoint

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know."""
        return (
            *self.opened.notes,
            *(f"{module.choice.name}: {fix}" for module in self.modules for fix in module.fixes),
        )

    @property
    def bundle_bytes(self) -> int:
        """Of all files but the manifest and the report, which hold what is measured."""
        return sum(module.nbytes for module in self.modules) + sum(map(len, self.sidecars.values()))

    def manifest_model(self) -> manifest.Model:
        """The manifest's description of the model."""
        config = self.checkpoint.config
        return describe_model(self.request.name, self.model, config, self.opened.preprocessor, self.opened.context)

    def generation(self) -> manifest.Generation:
        """The manifest's defaults for generating."""
        found = self.sidecars.get("tokenizer/generation_config.json", b"{}")
        return describe_generation(self.checkpoint.config, msgspec.json.decode(found))

    def versions(self) -> dict[str, str]:
        """Of what made the bundle."""
        more = TFLITE_LIBRARIES if any(module.is_tflite for module in self.modules) else ()
        return {name: metadata.version(name) for name in (*LIBRARIES, *more)}

    def options(self) -> dict[str, str | int | float | bool | None]:
        """As the manifest keeps them."""
        size = self.request.image_size
        asked = None if size is None else f"{size[0]}x{size[1]}"
        more = {} if self.request.format == "onnx" else {"format": self.request.format}
        return {"precision": self.request.precision, "context": self.opened.context, "image_size": asked, **more}

    def key(self) -> str:
        """A hash of all that determines the bundle's bytes; weights count by their files' names, sizes and times."""
        files = {tensor.file for tensor in self.checkpoint.tensors.values()}
        stats = sorted((file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files)
        sidecars = sorted((name, hashlib.sha256(data).hexdigest()) for name, data in self.sidecars.items())
        said = (
            self.request.name, repr(self.request.profile), self.options(), self.versions(), self.model, stats, sidecars,
            sorted(self.checkpoint.config.items()), self.calibration and self.calibration.sha256, _code(),
        )  # fmt: skip
        return hashlib.sha256(repr(said).encode()).hexdigest()


def open_export(request: Request, *, headers_only: bool = False) -> Opened:
    """Read the checkpoint's headers and choose; what cannot be exported is refused here, if headers show it.

    Raises:
        UsageError, UnsupportedError, DamagedFileError: Of the checkpoint or the options, in a line.
    """
    checkpoint = Checkpoint.open(request.folder, headers_only=headers_only)
    checkpoint.check_architecture(FAMILIES)
    _check_config(checkpoint)
    preprocessor = _json_sidecar(checkpoint, "preprocessor_config.json")
    vision = checkpoint.config.get("vision_config")
    names: tuple[manifest.ModuleName, ...] = (
        ("embedding", "decoder") if vision is None else ("embedding", "vision", "decoder")
    )
    choices = tuple(choose(request.profile, request.precision, names).values())
    for choice in choices:
        for precision in sorted(choice.precisions):
            parse_scheme(precision)
            if precision == STATIC and choice.dialect != "ort":
                why = f"{STATIC} is made for the CPU, and {request.profile.name} has {choice.name} elsewhere"
                raise UnsupportedError(f"--precision {request.precision}", why, "choose int8")
    check_limits(choices, request.profile)
    choices = with_formats(choices, request.profile, request.format, checkpoint.tensors.values())
    context, folder = _context(request, checkpoint), str(checkpoint.folder)
    grid, notes = None, []
    if vision is not None:
        picture = _picture(request, vision, preprocessor, context)
        grid, notes = picture.grid, [picture.note] if picture.note else []
    elif request.image_size:
        raise UsageError("--image-size", "the model takes no pictures", "leave it out")
    kinds = sorted({(choice.dialect, choice.half) for choice in choices if choice.engine})
    requests = {
        (dialect, half): TraceRequest(folder, TRACED.get(dialect, dialect), context, grid, half)
        for dialect, half in kinds
    }
    whole = any(choice.name == "vision" and choice.engine == "litert" for choice in choices)
    probe = TraceRequest(folder, "portable", context, grid if whole else _probe_grid(grid))
    if checkpoint.sidecar("tokenizer.json") is None:
        notes.append(f"{request.folder} has no tokenizer.json: its bundle can be measured, but takes no text")
    notes += [note for choice in choices if (note := npu_note(choice, request.precision))]
    return Opened(request, checkpoint, choices, context, requests, probe, preprocessor, tuple(notes))


def prepare(opened: Opened, calibration: Calibration | None = None) -> Prepared:
    """Trace the blocks and lay every module out; no weight is read.

    With a calibration, weights will be encoded by it.

    Raises:
        UnsupportedError, DamagedFileError: The model cannot be traced, or its weights are not those it needs.
    """
    checkpoint = opened.checkpoint
    *found, probe = trace([*opened.requests.values(), opened.probe])
    traced = dict(zip(opened.requests, found, strict=True))
    profile = opened.request.profile
    modules = tuple(_module(choice, profile, traced, checkpoint, calibration) for choice in opened.choices)
    for module in modules:
        check_weights([job.stored for job in module.jobs if not is_position(job.stored)], checkpoint)
    sidecars = {f"tokenizer/{name}": data for name in SIDECARS if (data := _sidecar(checkpoint, name)) is not None}
    sidecars[RUNNER] = build_pyz()
    return Prepared(opened, found[0].model, probe, modules, sidecars, calibration)


def probe_module(prepared: Prepared, precision: str, calibration: Calibration) -> PreparedModule:
    """The NPU's module in another precision, at the grid of the probe's pictures."""
    choice = next(module.choice for module in prepared.modules if module.choice.placement == "npu")
    choice = replace(choice, precision=precision)
    traced = {(choice.dialect, choice.half): prepared.probe}
    return _module(choice, prepared.request.profile, traced, prepared.checkpoint, calibration)


def _probe_grid(grid: Grid | None) -> Grid | None:
    """Of a large picture a corner is enough to see what its weights lost."""
    if grid is None or grid[0] * grid[1] <= PROBE_PATCHES:
        return grid
    return min(grid[0], 16), min(grid[1], 16)


def _module(
    choice: Choice,
    profile: Profile,
    traced: Mapping[tuple[Dialect, bool], Traced],
    checkpoint: Checkpoint,
    calibration: Calibration | None,
) -> PreparedModule:
    if choice.name == "embedding":
        return _embedding(choice, next(iter(traced.values())).model, checkpoint)
    found = traced[choice.dialect, choice.half]
    stack = decoder_stack(found.decoder, found.model.decoder)
    jobs: list[Job] = []
    if choice.name == "vision":
        assert found.vision is not None
        assert found.model.vision is not None
        stack = vision_stack(found.vision, found.model.vision)
    graph = build(stack, TRACED.get(choice.dialect, choice.dialect))
    if choice.name == "vision":
        jobs.append(_position_job(graph, found.model, checkpoint, choice))
    energies, ranges = (calibration.energies, calibration.ranges) if calibration else ({}, {})

    def scheme_of(name: str) -> Scheme:
        return with_range(parse_scheme(choice.precision_of(stack.segment_of(name))), ranges.get(f"{name}.weight"))

    named: tuple[str, ...] = ()
    if choice.placement == "npu":  # in one precision, for all of its parts
        stored = _integers(graph, choice, calibration)
    else:
        stored = quantize_graph(graph, choice.dialect, scheme_of)
        named = tuple(dict.fromkeys(stack.segment_of(each.names[0]) for each in stored if each.columns > 1))
    _check_parts(choice, named)
    assert choice.engine is not None
    fixes: tuple[Offence, ...] = ()
    if choice.engine != "litert":  # whose files its own converter makes
        graph, fixes = fit(graph, profile, choice.engine, choice.name)
    # The proof reads the same rows again in a moment, and then lets the page cache go of them.
    kept = replace(checkpoint, keep_pages=True)
    jobs += [Job(each, partial(_tasks, each, kept, choice.dialect, energies.get(each.names[0]))) for each in stored]
    weights = [job.stored for job in jobs]
    layout = lay_out(weights)
    bind(graph, weights, layout, WEIGHTS)
    return PreparedModule(choice, tuple(jobs), layout, graph, len(serialize(graph)), named, fixes)


def _integers(graph: ir.Model, choice: Choice, calibration: Calibration | None) -> tuple[Stored, ...]:
    """Lower to what an NPU computes, with the ranges of the calibration; without one, for the sizes alone."""
    scheme = parse_scheme(choice.precision)
    assert isinstance(scheme, NpuInt8)
    values = calibration.values.get(scheme.bits, {}) if calibration else {}
    return lower_to_integers(graph, scheme, values, [POSITION])


def is_position(stored: Stored) -> bool:
    """Whether it is the position embedding, which is computed from the checkpoint's table."""
    return stored.initializers[0] in (POSITION, f"{POSITION}.weight")


def _check_parts(choice: Choice, known: tuple[str, ...]) -> None:
    """Check that all parts that were named exist. Raises UsageError."""
    for part, precision in choice.parts:
        if part not in known:
            what = f"--precision {choice.name}.{part}={precision}"
            remedy = nearest_name(part, known) if known else f"write {choice.name}={precision}"
            raise UsageError(what, f"the {choice.name} has no such part", remedy)


def serialize(graph: ir.Model) -> bytes:
    """The bytes of ``model.onnx``, the same for the same graph."""
    return bytes(ir.to_proto(graph).SerializeToString(deterministic=True))


def _tasks(
    stored: Stored, source: Checkpoint, dialect: Dialect, energy: NDArray[np.float32] | None
) -> Iterator[Callable[[], Piece]]:
    for chunk in chunks(stored, source):
        encode = partial(encode_chunk, chunk, stored, source, dialect, energy)
        yield partial(_explained, source, chunk.origin, encode)


def _explained(source: Checkpoint, name: str, encode: Callable[[], Piece]) -> Piece:
    """Encode, and name file and tensor where the weights do not allow it."""
    try:
        return encode()
    except OverflowError as error:
        remedy = "export it in another precision"
        raise UnsupportedError(f"{source.find(name).file}: {name}", str(error), remedy) from error
    except ValueError as error:
        raise DamagedFileError(f"{source.find(name).file}: {name}", str(error), "download it again") from error


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
    value = next(each for each in graph.graph.inputs if each.name == POSITION)
    assert value.dtype is not None
    rows, dtype, table = (
        vision.grid[0] * vision.grid[1],
        value.dtype,
        f"{vision.prefix}embeddings.position_embedding.weight",
    )
    count, *columns = checkpoint.find(table).shape
    if columns != [vision.hidden] or round(count**0.5) ** 2 != count:
        why = f"has shape {[count, *columns]} where config.json makes it a square of positions x {vision.hidden}"
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


def _check_config(checkpoint: Checkpoint) -> None:
    for part in ("text_config", "vision_config"):
        if not isinstance(checkpoint.config.get(part, {}), dict):
            raise DamagedFileError(checkpoint.folder / "config.json", f"its {part} is no object", "download it again")


def _picture(request: Request, vision: Mapping[str, Any], preprocessor: Mapping[str, Any], context: int) -> Picture:
    limit, asked = request.profile.limits.image_pixels, request.image_size
    picture = choose_picture(vision, preprocessor, limit.value if limit else None, asked)
    if asked and picture.tokens >= context:
        why = f"takes {picture.tokens} tokens, and a conversation has {context}"
        raise UnsupportedError(f"--image-size {asked[0]}x{asked[1]}", why, "give a smaller size")
    return picture


def _context(request: Request, checkpoint: Checkpoint) -> int:
    text = checkpoint.config.get("text_config", checkpoint.config)
    longest = text.get("max_position_embeddings")
    if not isinstance(longest, int) or longest < 1:
        raise DamagedFileError(checkpoint.folder / "config.json", "has no max_position_embeddings", "take a whole one")
    if request.context is not None and request.context > longest:
        raise UnsupportedError(
            f"--context {request.context}", f"the model has {longest} positions", f"give at most {longest}"
        )
    return request.context or min(longest, MAX_CONTEXT)


def _sidecar(checkpoint: Checkpoint, name: str) -> bytes | None:
    path = checkpoint.sidecar(name)
    return path.read_bytes() if path else None


def _json_sidecar(checkpoint: Checkpoint, name: str) -> dict[str, Any]:
    path = checkpoint.sidecar(name)
    return read_json(path) if path else {}


def _code() -> str:
    """A hash of the exporter itself: a partial bundle of other code is not gone on with."""
    folder = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for source in sorted(path for path in folder.rglob("*.py") if "demo" not in path.parts):
        digest.update(source.read_bytes())
    return digest.hexdigest()
