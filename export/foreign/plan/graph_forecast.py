"""Predict the memory and size of a bundle of a user's own graph, which is read and checked but not converted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import onnx_ir as ir

from edgeglm.engines import ACCELERATOR_BYTES, ENGINES, EngineName
from edgeglm.errors import UnsupportedError
from edgeglm.export.foreign.normalize.fold import fold
from edgeglm.export.foreign.normalize.tidy import load_model
from edgeglm.export.foreign.plan.graph_peak import graph_peak, size_of
from edgeglm.export.foreign.plan.graph_plan import (
    BITS,
    CALIBRATED,
    PRECISIONS,
    GraphRequest,
    graph_engine,
    graph_precision,
    made_peak,
    read_source,
)
from edgeglm.export.foreign.quantize.integers import has_blocks
from edgeglm.export.foreign.read.arrays import make_samples
from edgeglm.export.foreign.read.graph_file import Source
from edgeglm.export.graph.conform import fit
from edgeglm.export.predict.answer import Blocker, Forecast, Option
from edgeglm.export.predict.peaks import RUNNER_BYTES
from edgeglm.units import format_size

# A graph has no context: its one size stands under this length.
NO_CONTEXT = 0
NODE_BYTES = 200
# Bytes of an element of a matrix, by precision; what is no matrix stays in fp32 where integers are computed.
ELEMENT: Mapping[str, float] = {"fp32": 4, "fp16": 2, "int8": 1, "int4": 0.5625, "a8w8": 1, "a16w8": 1}
# What a session keeps for a byte of a weight: packed beside the file's pages, fp16 widened.
LOADED: Mapping[str, float] = {"fp32": 2.0, "fp16": 3.0, "int8": 2.0, "int4": 2.0, "a8w8": 2.0, "a16w8": 2.0}


def forecast_graph(request: GraphRequest, work: Path) -> Forecast:
    """Return the answer of ``edgeglm plan``; dimensions that vary count 1.

    Raises:
        UsageError, DamagedFileError: Of the file or the precision.
        UnsupportedError: The device does not compute the precision.
    """
    profile, engine = request.profile, graph_engine(request.profile)
    chosen = graph_precision(request, engine)
    source, made = read_source(request.file, work)
    shapes = {name: tuple(array.shape) for name, array in make_samples(source.inputs)[0].items()}
    blockers = _blockers(request, source, engine, shapes)
    model = load_model(source.proto, source.shapes)
    weights = {name: _bundle_bytes(model, name) for name in PRECISIONS}
    steps = "fp32" if source.integers and chosen in CALIBRATED else chosen
    size = size_of(model, shapes, source.weights_bytes, steps, engine)
    peak, live = max(made_peak(request.file), graph_peak(size, steps, engine)), size.live
    usable = int(profile.memory.usable.value)

    def option(precision: str) -> Option:
        session = int(weights[precision] * (ENGINES[engine].loaded or LOADED[precision]))
        device = RUNNER_BYTES + ACCELERATOR_BYTES[ENGINES[engine].placement] + session + live
        return Option(precision, weights[precision], {NO_CONTEXT: device}, fits=device <= usable)

    offered = (name for name in PRECISIONS if name not in BITS and _computes(request, engine, name))
    options = tuple(option(name) for name in offered if name != "int4" or has_blocks(model))
    best = option(chosen)
    fits = best.fits and not blockers
    fitting = [other.precision for other in options if other.fits and not blockers]
    notes = [*made, *_notes(source)]
    return Forecast(
        request.name, profile.name, usable, fits, NO_CONTEXT, peak, best, options, blockers, tuple(notes),
        chosen if fits else next(iter(fitting), None),
    )  # fmt: skip


def _blockers(
    request: GraphRequest, source: Source, engine: EngineName, shapes: dict[str, tuple[int, ...]]
) -> tuple[Blocker, ...]:
    """Return what of the graph the engine refuses."""
    model = load_model(source.proto, source.shapes)
    fold(model, engine)
    try:
        fit(model, request.profile, engine, str(request.file), shapes)
    except UnsupportedError as error:
        return tuple(Blocker("graph", one.why, one.remedy) for one in (error, *error.more))
    return ()


def _computes(request: GraphRequest, engine: EngineName, precision: str) -> bool:
    try:
        graph_precision(replace(request, precision=precision), engine)
    except UnsupportedError:
        return False
    return True


def _notes(source: Source) -> list[str]:
    notes = []
    if source.varying:
        notes.append(f"dimensions that vary count 1: those of {', '.join(source.varying)}")
    if source.integers:
        notes.append(f"the graph is quantized already, by {', '.join(source.integers)}: its integers are kept")
    notes.append(f"its weights take {format_size(source.weights_bytes)} in the file")
    return notes


def _bundle_bytes(model: ir.Model, precision: str) -> int:
    """Return about how many bytes the files of a bundle take."""
    total = NODE_BYTES * len(model.graph)
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if tensor is None:
            continue
        narrow = tensor.dtype == ir.DataType.FLOAT and (precision == "fp16" or len(tensor.shape) > 1)
        # In INT4 are products, whose weights have two axes; tables, which may have them too, count as such.
        element = ELEMENT["int8" if precision == "int4" and len(tensor.shape) > 2 else precision]
        total += round(tensor.size * element) if narrow else tensor.nbytes
    return total
