"""Size the files of a TFLite module, and the memory of converting, calibrating and running them, from headers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from edgeglm.errors import UnsupportedError, UsageError
from edgeglm.export.families.registry import module_of
from edgeglm.export.model import Span
from edgeglm.export.prepare.header_checks import part_of
from edgeglm.export.prepare.types import Opened, Prepared
from edgeglm.export.targets.litert.plugin import find_tools
from edgeglm.roles import DECODER, TABLE, ModuleName, encoder_of
from edgeglm.units import format_size

MIB = 1 << 20
# Weights of one file in fp32: a constant, so that a bundle's bytes do not depend on the machine's memory.
FILE_BYTES = 512 * MIB
# Exporter and converting process with their libraries, and what the latter keeps for a byte of a file's fp32 weights.
CONVERT_BYTES, CONVERT_FACTOR = 1150 * MIB, 2.7
# The exporter with LiteRT, what that keeps for a byte of fp32 weights without a file for packed ones, and copies of
# attention's scores at a time.
PROVE_BYTES, LOADED, SCORES = 300 * MIB, 2.5, 3
# The most that the scores of all blocks may take, all of which a calibration keeps; else nothing is calibrated.
CALIBRATE_BYTES = 128 * MIB
# Tokens of a prefill: INT8 products are as fast with more, and a short prompt is padded to it.
CHUNK = 128


def conversion_peak(opened: Opened) -> int:
    """Return the peak resident memory of converting the largest file and of proving it, from the headers alone.

    0 where nothing is to be converted.
    """
    peaks = [0]
    for choice in opened.choices:
        if choice.engine == "litert":
            sizes = _part_sizes(opened, choice.name)
            largest = max(_bytes(sizes, span) for span in files_of(opened, choice.name).values())
            peaks.append(CONVERT_BYTES + int(CONVERT_FACTOR * largest))
            peaks.append(PROVE_BYTES + int(LOADED * sum(sizes.values())))
            if choice.is_image:
                peaks[-1] += SCORES * _scores(opened)
    return max(peaks)


def state_bytes(prepared: Prepared) -> int:
    """Return the memory of a decoder's keys and values, always for the whole context, and of a chunk's scores."""
    decoder, context = prepared.model.decoder, prepared.opened.context
    rows = 2 * decoder.layers * decoder.kv_heads * decoder.head_dim
    return 4 * context * (rows + SCORES * decoder.heads * min(CHUNK, context))


def check_npu(opened: Opened, samples: Sequence[object]) -> None:
    """Check what a TFLite module for an NPU takes, before anything is made of it.

    Raises:
        UnsupportedError: The compiler is not installed, or the ranges of the module cannot be taken.
        UsageError: There are no samples to take them from.
    """
    if not any(choice.engine == "litert" and choice.placement == "npu" for choice in opened.choices):
        return
    find_tools()
    scores, weights = all_scores(opened), sum(_part_sizes(opened, encoder_of("image")).values())
    if scores > CALIBRATE_BYTES or weights > FILE_BYTES:
        why = (
            f"its ranges are taken of the whole tower at once, which has {format_size(weights)} of weights in fp32 "
            f"and {format_size(scores)} of attention; at most {format_size(FILE_BYTES)} and "
            f"{format_size(CALIBRATE_BYTES)} are possible"
        )
        raise UnsupportedError("vision as TFLite for the NPU", why, "leave vision=tflite out")
    if not samples and not opened.request.is_demo:
        why = f"{opened.request.profile.name} has vision on its NPU, which takes ranges of activations"
        raise UsageError("--calibration", why, "give samples by --calibration FILE")


def files_of(opened: Opened, module: ModuleName) -> dict[str, Span]:
    """Return the files of a module, and what each holds: as much as `FILE_BYTES` allow, and at least one part."""
    sizes = _part_sizes(opened, module)
    layers = sum(part.startswith("layer.") for part in sizes)
    spans, start, front = [], 0, True
    for stop in range(1, layers + 1):
        following = Span(start, stop + 1, front, False) if stop < layers else Span(start, stop, front, True)
        if _bytes(sizes, following) > FILE_BYTES:
            spans.append(Span(start, stop, front, False))
            start, front = stop, False
        elif stop == layers:
            spans.append(following)
    if not spans[-1].back:
        spans.append(Span(layers, layers, False, True))
    if len(spans) == 1:
        return {"model.tflite": spans[0]}
    return {f"model-{index:03}.tflite": span for index, span in enumerate(spans)}


def _scores(opened: Opened) -> int:
    """Return the bytes of the scores of one vision block's attention."""
    rows, columns = opened.probe.grid or (0, 0)
    return 4 * _vision_size(opened, "num_heads", 12) * (rows * columns) ** 2


def all_scores(opened: Opened) -> int:
    """Return the bytes of the scores of all vision blocks, as a calibration keeps them."""
    return SCORES * _vision_size(opened, "depth", 24) * _scores(opened)


def _vision_size(opened: Opened, name: str, usual: int) -> int:
    """Return a size of the vision tower; `usual` is transformers' for a config that leaves it out (5.23)."""
    size = opened.checkpoint.config["vision_config"].get(name, usual)
    return size if isinstance(size, int) else usual  # transformers says what is wrong with others


def _part_sizes(opened: Opened, module: ModuleName) -> dict[str, int]:
    """Return the bytes of each part's weights in fp32."""
    sizes: dict[str, int] = {}
    tensors = opened.checkpoint.tensors.values()
    for tensor in tensors:
        if module_of(tensor.name) == module:
            sizes[part_of(tensor.name)] = sizes.get(part_of(tensor.name), 0) + 4 * math.prod(tensor.shape)
    if module == DECODER and opened.checkpoint.config.get("tie_word_embeddings"):
        table = sum(4 * math.prod(each.shape) for each in tensors if module_of(each.name) == TABLE)
        sizes["back"] = sizes.get("back", 0) + table
    return sizes


def _bytes(sizes: Mapping[str, int], span: Span) -> int:
    ends = (sizes.get("front", 0) if span.front else 0) + (sizes.get("back", 0) if span.back else 0)
    return ends + sum(sizes.get(f"layer.{layer}", 0) for layer in span.layers)
