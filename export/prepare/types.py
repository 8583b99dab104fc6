"""Prepared export, before its weights are read: the request, the choices, and the modules to write."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgeglm import manifest
from edgeglm.devices.profile import Profile
from edgeglm.engines import ENGINES, USUAL_FORMAT, Dialect
from edgeglm.export.checkpoint.lineage import ORIGINAL, ORIGINAL_SHA256, read_lineage, sparsity_of
from edgeglm.export.checkpoint.processor import ImageProcessor
from edgeglm.export.checkpoint.reader import Checkpoint
from edgeglm.export.graph.violation import Violation
from edgeglm.export.model import Choice, Grid, KvType, Model, Stored
from edgeglm.export.quantize.feedback import Inputs
from edgeglm.export.quantize.kept import describe_kept
from edgeglm.export.quantize.product_errors import ProductErrors, mean_errors
from edgeglm.export.quantize.qdq import Range
from edgeglm.export.quantize.stream import Piece
from edgeglm.export.samples.screenshots import Sample
from edgeglm.export.samples.shipped import Shipped
from edgeglm.export.trace.trace_request import TraceRequest
from edgeglm.export.trace.tracer import Traced, is_cached
from edgeglm.export.write.describe import describe_model
from edgeglm.export.write.layout import Layout

LIBRARIES = ("edgeglm", "numpy", "onnx", "onnx-ir", "onnxruntime", "onnxscript", "torch", "transformers")
_version = cache(metadata.version)  # which searches all paths; a ladder asks at every rung
Arrays = Mapping[str, NDArray[Any]]
WEIGHTS = "weights.bin"
# Ends of names of buffers that are computed from the config.
COMPUTED = ("rotary_emb.inv_freq", "rotary_pos_emb.inv_freq", "embeddings.position_ids")


@dataclass(frozen=True)
class Request:
    """The user's request; `name` is the model's name in the bundle, `shipped` the data that comes with the model.

    `equalizes` is whether a calibration moves scales between weights.
    """

    folder: Path
    name: str
    profile: Profile
    precision: str = "auto"
    context: int | None = None
    image_sizes: tuple[tuple[int, int], ...] = ()
    shipped: Shipped | None = None
    format: str = USUAL_FORMAT
    adapter: Path | None = None
    prefixes: tuple[Path, ...] = ()
    kv: KvType = "fp32"
    equalizes: bool = True


@dataclass(frozen=True)
class Calibration:
    """The statistics of a calibration by the name of the weight: what a matrix is multiplied by, ranges.

    ``divisors`` are what rows of a tensor are divided by, so that the matrices that read them have smaller inputs
    (`calibrate.equalize`). INT4 matrices of up to ``widest`` input channels feed errors back; ``notes`` say what was
    found, and ``errors`` what that gains.

    ``values`` are ranges of everything that flows through a module for an NPU, by its graph's names: by bits, since
    8 of them want a narrower one than 16. ``candidates`` are the errors that its precisions were found to have, and
    ``shown`` what it was given for that, and what the original makes of it.
    """

    sha256: str
    inputs: Mapping[str, Inputs]
    ranges: Mapping[str, Range]
    samples: Sequence[Sample] = ()
    values: Mapping[int, Mapping[str, Range]] = field(default_factory=dict)
    candidates: Mapping[str, float] = field(default_factory=dict)
    divisors: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    widest: int = 0
    notes: tuple[str, ...] = ()
    errors: tuple[ProductErrors, ...] = ()
    shown: Sequence[tuple[Arrays, Arrays]] = ()


@dataclass(frozen=True)
class Job:
    """A stored weight to write: how its chunks are read and encoded."""

    stored: Stored
    tasks: Callable[[], Iterator[Callable[[], Piece]]]


@dataclass(frozen=True)
class PreparedModule:
    """A module whose graph is lowered and whose weights have their places; `graph` is None for the embedding rows.

    `parts` are those of a graph that hold matrices, in the order of computation; `fixes` what the engine would have
    refused. `shapes` are graphs over the same weights for further grids of a picture: `grid` is this one's, where it is
    one of them. `slots` is a decoder's graph over them for several sequences, where it may have one.
    """

    choice: Choice
    jobs: tuple[Job, ...]
    layout: Layout
    graph: ir.Model | None = None
    graph_bytes: int = 0
    parts: tuple[str, ...] = ()
    fixes: tuple[Violation, ...] = ()
    grid: Grid | None = None
    shapes: tuple[PreparedModule, ...] = ()
    slots: bytes | None = None

    @property
    def weights_file(self) -> str:
        """Relative to the bundle."""
        return f"{self.choice.name}/{WEIGHTS if self.graph else 'rows.bin'}"

    @property
    def file(self) -> str:
        """The file to open, relative to the bundle."""
        if self.graph is None:
            return self.weights_file
        return f"{self.choice.name}/{f'{self.grid[0]}x{self.grid[1]}' if self.grid else 'model'}.onnx"

    @property
    def slots_file(self) -> str:
        """The file of the graph for several sequences, relative to the bundle."""
        return f"{self.choice.name}/slots.onnx"

    @property
    def part_precisions(self) -> dict[str, str]:
        """The precision of every part."""
        return {part: self.choice.precision_of(part) for part in self.parts}

    @property
    def nbytes(self) -> int:
        """The bytes of all files of the module."""
        graphs = self.graph_bytes + len(self.slots or b"") + sum(shape.graph_bytes for shape in self.shapes)
        return self.layout.nbytes + graphs


@dataclass(frozen=True)
class Opened:
    """A checkpoint whose headers were read, and what was chosen for it; nothing is traced yet.

    `requests` are the traces that its modules need, by dialect and whether in half precision; `probe` is the one that
    the original is computed with. `shapes` are those two for each further grid of a picture, the vision module's alone.
    `processor` prepares the pictures, where there are any, and `image_tokens` is what the largest of them takes.
    """

    request: Request
    checkpoint: Checkpoint
    choices: tuple[Choice, ...]
    context: int
    requests: Mapping[tuple[Dialect, bool], TraceRequest]
    probe: TraceRequest
    processor: ImageProcessor | None
    generation: manifest.Generation
    notes: tuple[str, ...]
    shapes: tuple[tuple[TraceRequest, TraceRequest], ...] = ()
    image_tokens: int = 0

    @property
    def probes(self) -> list[TraceRequest]:
        """The probes that the original is computed with, at the picture's grid and at each further one."""
        return [self.probe, *(probe for _, probe in self.shapes)]

    @property
    def traces(self) -> list[TraceRequest]:
        """The traces of the export; a module in half precision is compared with the original value by value."""
        half = any(choice.half for choice in self.choices)
        halves = [replace(probe, half=True) for probe in self.probes] if half else []
        return list(
            dict.fromkeys([*self.requests.values(), *(traced for traced, _ in self.shapes), *self.probes, *halves])
        )

    @property
    def is_traced(self) -> bool:
        """Whether the traces are in the cache."""
        return is_cached(self.traces)


@dataclass(frozen=True)
class Prepared:
    """An export that is ready to be written; `probe` are the traces that the original is computed with.

    `shape_probes` are those for each further grid of a picture.
    """

    opened: Opened
    model: Model
    probe: Traced
    modules: tuple[PreparedModule, ...]
    sidecars: Mapping[str, bytes]
    calibration: Calibration | None = None
    shape_probes: tuple[Traced, ...] = ()

    @property
    def request(self) -> Request:
        """The user's request."""
        return self.opened.request

    @property
    def checkpoint(self) -> Checkpoint:
        """The checkpoint that weights are read from."""
        return self.opened.checkpoint

    @property
    def notes(self) -> tuple[str, ...]:
        """The notes for the user."""
        return (
            *self.opened.notes,
            *self._left_out(),
            *self._kept(),
            *(f"{module.choice.name}: {fix}" for module in self.modules for fix in module.fixes),
        )

    def _left_out(self) -> Iterator[str]:
        """Yield weights that no module has, but for tables that transformers 4 saved and every class computes."""
        names = {*self.checkpoint.tensors, *self.checkpoint.foreign}
        names -= {name for module in self.modules for job in module.jobs for name in job.stored.names}
        if left := sorted(name for name in names if not name.endswith(COMPUTED)):
            what = f"weight {left[0]} is" if len(left) == 1 else f"{len(left)} weights, such as {left[0]}, are"
            yield f"the {what} no part of {self.model.architecture}, and left out as transformers does"

    def _kept(self) -> Iterator[str]:
        for module in self.modules:
            stored = ((name, job.stored.scheme) for job in module.jobs for name in job.stored.names)
            if line := describe_kept(module.choice, ((self.checkpoint.find(name), scheme) for name, scheme in stored)):
                yield line

    def product_errors(self, choice: Choice) -> dict[str, float]:
        """Return what a calibration measured of a module's parts, in the precisions that they have."""
        errors = self.calibration.errors if self.calibration else ()
        own = (error for error in errors if error.module == choice.name)
        return mean_errors(error for error in own if error.precision == choice.precision_of(error.part))

    @property
    def bundle_bytes(self) -> int:
        """The bytes of all files but the manifest, the report and a user's self-test, which hold measurements."""
        return sum(module.nbytes for module in self.modules) + sum(map(len, self.sidecars.values()))

    def manifest_model(self) -> manifest.Model:
        """Return the manifest's description of the model."""
        request, opened = self.request, self.opened
        model = describe_model(request.name, self.model, self.checkpoint.config, opened.processor, opened.context)
        shipped = request.shipped.task if request.shipped else None
        return msgspec.structs.replace(model, task=shipped or model.task)

    def versions(self) -> dict[str, str]:
        """Return the versions of what made the bundle."""
        engines = [ENGINES[module.choice.engine] for module in self.modules if module.choice.engine]
        more = dict.fromkeys(name for engine in engines for name in engine.made_by)
        return {name: _version(name) for name in (*LIBRARIES, *more)}

    def options(self) -> dict[str, str | int | float | bool | None]:
        """Return the options as the manifest keeps them."""
        asked = ",".join(f"{width}x{height}" for width, height in self.request.image_sizes) or None
        more = {} if self.request.format == USUAL_FORMAT else {"format": self.request.format}
        if self.request.kv != "fp32":
            more["kv"] = self.request.kv
        if not self.request.equalizes:
            more["equalization"] = "off"
        if self.checkpoint.adapter_sha256:
            more["adapter_sha256"] = self.checkpoint.adapter_sha256
        if lineage := read_lineage(self.checkpoint.folder):
            more |= {ORIGINAL: lineage.original, ORIGINAL_SHA256: lineage.sha256}
            more |= {manifest.SPARSE: pattern} if (pattern := sparsity_of(lineage)) else {}
        return {"precision": self.request.precision, "context": self.opened.context, "image_size": asked, **more}

    def key(self) -> str:
        """Hash all that determines the bundle's bytes but those of the weights, which `weights` identifies."""
        shapes = sorted((name, tensor.dtype, tensor.shape) for name, tensor in self.checkpoint.tensors.items())
        sidecars = sorted((name, hashlib.sha256(data).hexdigest()) for name, data in self.sidecars.items())
        learned = self.calibration
        said = (
            self.request.name, repr(self.request.profile), self.options(), self.versions(), self.model, shapes,
            sidecars, sorted(self.checkpoint.config.items()), learned and (learned.sha256, learned.widest), _code(),
        )  # fmt: skip
        return hashlib.sha256(repr(said).encode()).hexdigest()


@cache  # what runs stays what was imported
def _code() -> str:
    """Return a hash of the exporter itself: a partial bundle of other code is not gone on with."""
    folder = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for source in sorted(path for path in folder.rglob("*.py") if "demo" not in path.parts):
        digest.update(source.read_bytes())
    return digest.hexdigest()
