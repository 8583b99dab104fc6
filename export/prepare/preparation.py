"""Prepare everything that needs no weight: choices, traces and layouts, so that all sizes are known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from edgeglm.engines import DIALECTS, ENGINES, Dialect
from edgeglm.errors import UnsupportedError, UsageError
from edgeglm.export.checkpoint.adapter import open_checkpoint
from edgeglm.export.checkpoint.processor import ImageProcessor, read_processor
from edgeglm.export.checkpoint.reader import Checkpoint
from edgeglm.export.choose.device_limits import check_limits, with_kv
from edgeglm.export.choose.formats import with_formats
from edgeglm.export.choose.picture import Picture, choose_picture
from edgeglm.export.choose.precision import choose, npu_note
from edgeglm.export.families.registry import FAMILIES, family_of, image_config
from edgeglm.export.families.rope import FILE
from edgeglm.export.graph.assemble import check_weights
from edgeglm.export.model import Choice, Grid
from edgeglm.export.prepare.header_checks import check_counts
from edgeglm.export.prepare.intake import check_config, choose_context, key_notes, read_conversation, sparse_notes
from edgeglm.export.prepare.module import is_position, prepare_module
from edgeglm.export.prepare.shipped_assets import shipped_assets
from edgeglm.export.prepare.types import (
    Calibration,
    Opened,
    Prepared,
    PreparedModule,
    Request,
)
from edgeglm.export.prepare.value_checks import check_values
from edgeglm.export.quantize.schemes import parse_scheme
from edgeglm.export.trace.trace_request import TraceRequest
from edgeglm.export.trace.tracer import Traced, trace
from edgeglm.export.write.pyz import build_pyz
from edgeglm.runtimes.text.sidecars import Sidecars
from edgeglm.runtimes.text.templates import named_templates

# What a device needs beside the weights, where the checkpoint has it.
SIDECARS = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja", "chat_template.json",
    "preprocessor_config.json", "processor_config.json", "generation_config.json",
)  # fmt: skip
# The most patches that the original is computed for.
PROBE_PATCHES = 1024
STATIC = "int8-static"
RUNNER = "run.pyz"


def open_export(request: Request, *, headers_only: bool = False) -> Opened:
    """Read the checkpoint's headers and choose; what cannot be exported is refused here, if headers show it.

    Raises:
        UsageError, UnsupportedError, DamagedFileError: Of the checkpoint or the options, in a line.
    """
    checkpoint = open_checkpoint(request.folder, request.adapter, headers_only=headers_only)
    checkpoint.check_architecture(FAMILIES)
    check_config(checkpoint)
    check_counts(checkpoint)
    check_values(checkpoint)
    family = family_of(checkpoint.config)
    names, vision = family.modules(checkpoint.config), image_config(checkpoint.config)
    choices = tuple(choose(request.profile, request.precision, names).values())
    for choice in choices:
        for precision in sorted(choice.precisions):
            parse_scheme(precision)
            if precision == STATIC and not choice.kind.contrib:
                why = f"{STATIC} is made for the CPU, and {request.profile.name} has {choice.name} elsewhere"
                raise UnsupportedError(f"--precision {request.precision}", why, "choose int8")
    check_limits(choices, request.profile)
    choices = with_formats(choices, request.profile, request.format, checkpoint.tensors.values())
    choices = with_kv(choices, request.kv, request.profile)
    context, config = choose_context(request, checkpoint), checkpoint.config_json
    if vision is None and request.image_sizes:
        raise UsageError("--image-size", "the model takes no images", "leave it out")
    processor, notes, pictures = None, [*checkpoint.notes, *key_notes(checkpoint)], list[Picture]()
    if vision is not None:
        processor, said = read_processor(checkpoint, vision)
        pictures = _pictures(request, vision, processor, context)
        notes += [*said, *(picture.note for picture in pictures if picture.note)]
    grid, *more = dict.fromkeys(picture.grid for picture in pictures) if pictures else [None]
    kinds = sorted({(choice.dialect, choice.half) for choice in choices if choice.engine})
    requests = {
        (dialect, half): TraceRequest(config, DIALECTS[dialect].traced or dialect, context, grid, half)
        for dialect, half in kinds
    }
    whole = any(choice.is_image and choice.is_converted for choice in choices)
    probe = TraceRequest(config, "portable", context, grid if whole else _probe_grid(grid))
    generation, told = read_conversation(checkpoint, context)
    notes += [
        *told,
        *sparse_notes(checkpoint, choices),
        *(note for choice in choices if (note := npu_note(choice, request.precision))),
    ]
    shapes = tuple(_shape(choices, requests, probe, grid) for grid in more if grid)
    tokens = max((picture.tokens for picture in pictures), default=0)
    return Opened(
        request, checkpoint, choices, context, requests, probe, processor, generation, tuple(notes), shapes, tokens
    )


def prepare(opened: Opened, calibration: Calibration | None = None) -> Prepared:
    """Trace the blocks and lay every module out; no weight is read.

    With a calibration, weights will be encoded by it.

    Raises:
        UnsupportedError, DamagedFileError: The model cannot be traced, or its weights are not those it needs.
    """
    checkpoint = opened.checkpoint
    found = dict(zip(opened.traces, trace(opened.traces, checkpoint.folder / FILE), strict=True))
    traced = {kind: found[request] for kind, request in opened.requests.items()}
    shapes, profile = [found[request] for request, _ in opened.shapes], opened.request.profile
    modules = tuple(
        prepare_module(choice, profile, traced, checkpoint, calibration, shapes if choice.is_image else ())
        for choice in opened.choices
    )
    for module in modules:
        check_weights([job.stored for job in module.jobs if not is_position(job.stored)], checkpoint)
    names = [*SIDECARS, *named_templates(checkpoint.folder)]
    sidecars = {f"tokenizer/{name}": data for name in names if (data := _sidecar(checkpoint, name)) is not None}
    sidecars[RUNNER] = build_pyz()
    sidecars |= shipped_assets(opened)
    model, probe, *probes = (
        next(iter(traced.values())).model,
        *(_with_half(request, found) for request in opened.probes),
    )
    return Prepared(opened, model, probe, modules, sidecars, calibration, tuple(probes))


def _with_half(probe: TraceRequest, found: Mapping[TraceRequest, Traced]) -> Traced:
    return replace(found[probe], half=found.get(replace(probe, half=True)))


def probe_module(prepared: Prepared, precision: str, calibration: Calibration) -> PreparedModule:
    """Return the NPU's module in another precision, at the grid of the probe's pictures."""
    choice = next(module.choice for module in prepared.modules if module.choice.kind.integers)
    choice = replace(choice, precision=precision)
    traced = {(choice.dialect, choice.half): prepared.probe}
    return prepare_module(choice, prepared.request.profile, traced, prepared.checkpoint, calibration)


def _probe_grid(grid: Grid | None) -> Grid | None:
    """Return the probe's grid: a corner of a large picture shows what its weights lost."""
    if grid is None or grid[0] * grid[1] <= PROBE_PATCHES:
        return grid
    return min(grid[0], 16), min(grid[1], 16)


def _pictures(request: Request, vision: Mapping[str, Any], processor: ImageProcessor, context: int) -> list[Picture]:
    """Return a picture for each size that was asked for; else the usual one."""
    limit, pictures = request.profile.limits.image_pixels, []
    for asked in request.image_sizes or [None]:
        picture = choose_picture(vision, processor, limit.value if limit else None, asked)
        if asked and picture.tokens >= context:
            why = f"takes {picture.tokens} tokens, and a conversation has {context}"
            raise UnsupportedError(f"--image-size {asked[0]}x{asked[1]}", why, "give a smaller size")
        pictures.append(picture)
    return pictures


def _shape(
    choices: Sequence[Choice], requests: Mapping[tuple[Dialect, bool], TraceRequest], probe: TraceRequest, grid: Grid
) -> tuple[TraceRequest, TraceRequest]:
    """Return the vision module's trace and the original's for a further grid. Raises UnsupportedError."""
    choice = next(choice for choice in choices if choice.is_image)
    if choice.engine is None or not ENGINES[choice.engine].shapes:
        why = "a module that a compiler or a converter makes takes one image size"
        raise UnsupportedError("--image-size", why, "give it once, or vision=fp16 or another precision of the CPU")
    traced = requests[choice.dialect, choice.half]
    return replace(traced, grid=grid), replace(probe, grid=_probe_grid(grid))


def _sidecar(checkpoint: Checkpoint, name: str) -> bytes | None:
    return Sidecars(checkpoint.folder).bytes(name)
