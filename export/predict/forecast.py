"""Predict the memory and size of an export on a target from the checkpoint's headers: `edgeglm plan`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from edgeglm import manifest
from edgeglm.devices.loader import load_profile, profile_names
from edgeglm.devices.profile import Profile
from edgeglm.export.calibrate.calibrator import MOST
from edgeglm.export.checkpoint.recognize import missing_weight
from edgeglm.export.choose.device_limits import needs_more_opset
from edgeglm.export.choose.precision import choose
from edgeglm.export.families.registry import family_of, image_config, module_of
from edgeglm.export.model import Choice, Stored
from edgeglm.export.predict import peaks as plan
from edgeglm.export.predict.answer import Blocker, Forecast, Option
from edgeglm.export.predict.learning import feedback_bytes
from edgeglm.export.predict.torch_build import beyond_cpu_build
from edgeglm.export.prefix.lengths import prefix_lengths
from edgeglm.export.prepare.header_checks import part_of
from edgeglm.export.prepare.preparation import open_export, prepare
from edgeglm.export.prepare.types import Opened, Prepared, PreparedModule, Request
from edgeglm.export.prove.prover import ENGINE_BYTES
from edgeglm.export.quantize.embedding import embedding_parts
from edgeglm.export.quantize.schemes import OFFERED, PRECISIONS, loaded, parse_scheme
from edgeglm.export.quantize.storage import parts
from edgeglm.export.quantize.stream import WORKERS
from edgeglm.export.targets.base import peak_steps
from edgeglm.runtimes.core.generate import PREFILL_CHUNK
from edgeglm.units import format_size

# Where a plan asks whether it fits, unless told otherwise: a phone agent's screenshot, history and answer.
USUAL_CONTEXT = 4096
# What a tensor of a header takes: its JSON as Python's objects, and what is kept of it.
TENSOR_BYTES = 1000
# Cosines and sines of each patch, as inputs of a vision block and as buffers of the front.
ANGLES = 4


def export_peak(opened: Opened, *, workers: int, traced: bool, torch: int | None = None) -> int:
    """Return the export's peak memory, from the headers alone.

    Args:
        opened: The model.
        workers: Encoding threads.
        traced: Whether its blocks must be traced first.
        torch: Bytes that torch takes beyond its CPU build; those of the installed one if None.
    """
    torch = beyond_cpu_build() if torch is None else torch
    sizes = [_from_headers(opened, choice) for choice in opened.choices]
    # By each worker, and by the proof that follows them.
    decoding = (workers + 1) * max((tensor.decoding_bytes for tensor in opened.checkpoint.tensors.values()), default=0)
    peak = plan.export_peak(
        sizes,
        workers,
        ENGINE_BYTES,
        torch=torch if traced else None,
        examples=_example_bytes(opened),
        decoding=decoding,
        words=_words(opened),
    )
    tensors = len(opened.checkpoint.tensors) + len(opened.checkpoint.foreign)
    own = (converting + torch for step in peak_steps(opened.choices) if (converting := step.export_peak(opened)))
    return max([peak, *own]) + TENSOR_BYTES * tensors


def _example_bytes(opened: Opened) -> int:
    """Return the bytes of the largest picture's patches, hidden states and angles in fp32, as the tracing has them.

    Sizes that the config leaves out are transformers' (5.23).
    """
    vision = image_config(opened.checkpoint.config) or {}
    usual = {"in_channels": 3, "temporal_patch_size": 2, "patch_size": 14, "hidden_size": 1536, "num_heads": 12}
    sizes = [vision.get(name, size) for name, size in usual.items()]
    if not all(isinstance(size, int) and size > 0 for size in sizes):
        return 0  # transformers says what is wrong with them
    channels, frames, patch, hidden, heads = sizes
    values: int = channels * frames * patch**2 + hidden + ANGLES * hidden // heads
    patches = max((request.grid[0] * request.grid[1] for request in opened.traces if request.grid), default=0)
    return 4 * values * patches


def _words(opened: Opened) -> int:
    """Return how many words the tokenizer has: as many as the model, if there is one."""
    config = opened.checkpoint.config
    words: int = config.get("text_config", config).get("vocab_size", 0)  # of another type is refused before
    return words if opened.checkpoint.sidecar("tokenizer.json") else 0


def loaded_bytes(opened: Opened) -> int:
    """Return what a session of the largest module keeps in memory, from the headers alone."""
    return max(_from_headers(opened, choice).loaded for choice in opened.choices if choice.engine)


def check_budget(opened: Opened, budget: int, samples_bytes: int = 0) -> int:
    """Return the export's peak in bytes, if it is within the budget.

    Args:
        opened: The model.
        budget: Bytes, of ``--max-ram``.
        samples_bytes: What samples take in the peak.

    Raises:
        BudgetError: It is not; the message names the smallest budget that would do.
        DamagedFileError: A module has no weight at all.
    """
    peak = samples_bytes + export_peak(opened, workers=WORKERS, traced=not opened.is_traced)
    plan.check_peak(peak, budget, f"for {opened.request.name}")
    return peak


def predict(prepared: Prepared) -> manifest.Predicted:
    """Return the peaks of a whole export and of running its bundle, the same on each machine."""
    peaks = plan.by_context(module_sizes(prepared), prepared.model.decoder, prepared.opened.context)
    return manifest.Predicted(export_peak(prepared.opened, workers=plan.USUAL_WORKERS, traced=True, torch=0), peaks)


def predict_slots(prepared: Prepared, slots: int) -> tuple[int, int]:
    """Return the peak of so many sequences side by side without their tokens, and what each token adds, in bytes."""
    return plan.slots_peak(module_sizes(prepared), prepared.model.decoder, slots)


def module_sizes(prepared: Prepared) -> list[plan.ModuleSize]:
    """Return what the predictions take of the modules."""
    return [_size(prepared, module) for module in prepared.modules]


def _from_headers(opened: Opened, choice: Choice) -> plan.ModuleSize:
    """Return a module as its checkpoint's tensors show it, before anything is fused."""
    weights = []
    for tensor in opened.checkpoint.tensors.values():
        if len(tensor.shape) < 2 or module_of(tensor.name) != choice.name:
            continue
        scheme = parse_scheme(choice.precision_of(part_of(tensor.name)))
        rows, columns = tensor.shape[0], math.prod(tensor.shape[1:])
        if choice.is_table:
            stored = embedding_parts(scheme, rows, columns)  # type: ignore[arg-type]
        else:
            stored = parts(scheme, choice.dialect, rows + rows % 2, columns)
        weights.append(Stored((tensor.name,), rows, columns, scheme, stored, ()))
    if not weights:
        first = family_of(opened.checkpoint.config).first_weight(choice.name)
        raise missing_weight(opened.checkpoint.weights, first, opened.checkpoint.tensors)
    total = sum(part.nbytes for stored in weights for part in stored.parts)
    return plan.ModuleSize(choice, weights, total, _loaded(choice, weights), 0, 0)


def _loaded(choice: Choice, weights: Sequence[Stored]) -> float:
    """Return what a session keeps for a byte of the weights: the mean over those of a mixed module."""
    if not choice.parts:
        return PRECISIONS[choice.precision].loaded
    matrices = [stored for stored in weights if stored.columns > 1]
    sizes = [sum(part.nbytes for part in stored.parts) for stored in matrices]
    return sum(loaded(stored.scheme) * size for stored, size in zip(matrices, sizes, strict=True)) / sum(sizes)


def forecast(request: Request) -> Forecast:
    """Prepare the export in every precision, and say which of them fit the target.

    Raises:
        UsageError, UnsupportedError, DamagedFileError: As `prepare`.
    """
    prepared = prepare(open_export(request, headers_only=True))
    profile, usable = request.profile, int(request.profile.memory.usable.value)
    context, lengths = min(request.context or USUAL_CONTEXT, prepared.opened.context), prefix_lengths(prepared.opened)
    chosen = _option(request.precision, prepared, context, usable, lengths)
    others = {
        name: prepare(open_export(replace(request, precision=name), headers_only=True)) for name in ("fp32", *OFFERED)
    }
    options = tuple(_option(name, option, context, usable, lengths) for name, option in others.items())
    notes, blockers = list(prepared.notes), []
    npu = _npu_note(profile)
    if npu and chosen.fits:
        notes.append(f"decoder: {npu[0]}; {npu[1]}")
    elif npu:
        blockers.append(Blocker("decoder", *npu))
    if not chosen.fits:
        blockers.append(_memory_blocker(prepared, others, context))
    fitting = [option.precision for option in options if option.fits and option.precision in OFFERED]
    recommended = request.precision if chosen.fits else fitting[0] if fitting else None
    computed = plan.prefix_peak(module_sizes(prepared), prepared.model.decoder, lengths)
    peak = max(export_peak(prepared.opened, workers=WORKERS, traced=True), computed)
    return Forecast(
        request.name, profile.name, usable, chosen.fits, context, peak, chosen, options, tuple(blockers), tuple(notes),
        recommended, feedback_bytes(prepared, MOST),
    )  # fmt: skip


def _size(prepared: Prepared, module: PreparedModule) -> plan.ModuleSize:
    decoder, vision, pixels, inputs = prepared.model.decoder, prepared.model.vision, 0, 0
    if module.choice.is_image and vision:
        grids = [vision.grid, *(shape.grid for shape in module.shapes if shape.grid)]
        tokens, wide = max(rows * columns for rows, columns in grids), vision.hidden + 2 * vision.output
        pixels = tokens * vision.patch**2
        inputs = 4 * vision.channels * vision.temporal_patch * pixels
    elif encoder := prepared.model.encoders.get(module.choice.name):
        tokens, wide = encoder.positions, encoder.hidden + 2 * encoder.output
    else:
        tokens, wide = PREFILL_CHUNK, plan.decoder_width(decoder)
    weights = [job.stored for job in module.jobs]
    factor = _loaded(module.choice, weights)
    state = None
    for step in peak_steps([module.choice] if module.choice.is_decoder else []):
        state, tokens = step.state(prepared)
    return plan.ModuleSize(module.choice, weights, module.layout.nbytes, factor, tokens, wide, state, pixels, inputs)


def _option(precision: str, prepared: Prepared, context: int, usable: int, lengths: Sequence[int]) -> Option:
    sizes, decoder = module_sizes(prepared), prepared.model.decoder
    placed = next(size.choice for size in sizes if size.choice.is_decoder)
    peaks = plan.by_context(sizes, decoder, prepared.opened.context)
    compiled = sum(int(plan.COMPILED_FACTOR * size.nbytes) for size in sizes if size.choice.kind.integers)
    shipped = sum(plan.prefix_bytes(placed, decoder, length) for length in lengths)
    fits = plan.device_peak(sizes, decoder, context) <= usable
    return Option(precision, prepared.bundle_bytes + compiled + shipped, peaks, fits)


def _npu_note(profile: Profile) -> tuple[str, str] | None:
    limit, qnn = profile.limits.npu_decoder, profile.toolchain.qnn
    if limit is None or limit.value or qnn is None:
        return None
    reason = f"the vendor's language-model path needs Hexagon v73 or later, and this board has v{qnn.htp_arch.value}"
    return reason, "the decoder runs on the CPU"


def _memory_blocker(prepared: Prepared, others: Mapping[str, Prepared], context: int) -> Blocker:
    profile, usable = prepared.request.profile, int(prepared.request.profile.memory.usable.value)
    decoder, sizes = prepared.model.decoder, module_sizes(prepared)
    worst = max(sizes, key=lambda size: plan.device_peak([size], decoder, context))
    needed = plan.device_peak(sizes, decoder, context)
    reason = (
        f"the board's memory is too small: {format_size(needed)} at {context} tokens, "
        f"where {format_size(usable)} of {format_size(int(profile.memory.total.value))} are for a model"
    )
    here = [name for name in OFFERED if plan.device_peak(module_sizes(others[name]), decoder, context) <= usable]
    if here:
        return Blocker(worst.choice.name, reason, f"here {here[0]} fits: --precision {here[0]}")
    smallest = {size.choice.name: size for size in module_sizes(others["int4"])}
    count = plan.largest_decoder(usable, smallest, decoder, context)
    elsewhere = ", ".join(_fitting_targets(others, context)) or "none of the profiles"
    return Blocker(
        worst.choice.name,
        reason,
        f"what does fit: here a decoder of up to {count / 1e9:.1f}B parameters in int4; this model on {elsewhere}",
    )


def _fitting_targets(others: Mapping[str, Prepared], context: int) -> list[str]:
    """Return the profiles that the model fits, the smallest first, each with its most accurate precision."""
    profiles = sorted(map(load_profile, profile_names()), key=lambda profile: int(profile.memory.usable.value))
    found = ((profile, _fitting_precision(profile, others, context)) for profile in profiles)
    return [f"{profile.name} ({precision})" for profile, precision in found if precision]


def _fitting_precision(profile: Profile, others: Mapping[str, Prepared], context: int) -> str | None:
    for precision in OFFERED:
        prepared = others[precision]
        sizes = module_sizes(prepared)
        choices = choose(profile, precision, [size.choice.name for size in sizes])
        if any(needs_more_opset(choice, profile) for choice in choices.values()):
            return None
        placed = [replace(size, choice=choices[size.choice.name]) for size in sizes]
        if plan.device_peak(placed, prepared.model.decoder, context) <= int(profile.memory.usable.value):
            return precision
    return None
