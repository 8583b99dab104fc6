"""Predict the memory of converting TFLite modules, and of running them, from headers."""

from __future__ import annotations

from edgeglm.export.prepare.types import Opened, Prepared
from edgeglm.export.targets.litert.sizes import CHUNK, MIB, SCORES, files_of, part_sizes, scores, span_bytes

# Exporter and converting process with their libraries, and what the latter keeps for a byte of a file's fp32 weights.
CONVERT_BYTES, CONVERT_FACTOR = 1200 * MIB, 2.7
# The exporter with LiteRT, what that keeps for a byte of fp32 weights without a file for packed ones.
PROVE_BYTES, LOADED = 300 * MIB, 2.5


def export_peak(opened: Opened) -> int:
    """Return the peak resident memory of converting the largest file and of proving it, from the headers alone.

    0 where nothing is to be converted.
    """
    peaks = [0]
    for choice in opened.choices:
        if choice.is_converted:
            sizes = part_sizes(opened, choice.name)
            largest = max(span_bytes(sizes, span) for span in files_of(opened, choice.name).values())
            peaks.append(CONVERT_BYTES + int(CONVERT_FACTOR * largest))
            peaks.append(PROVE_BYTES + int(LOADED * sum(sizes.values())))
            if choice.is_image:
                peaks[-1] += SCORES * scores(opened)
    return max(peaks)


def state(prepared: Prepared) -> tuple[int, int]:
    """Return the bytes of keys and values, always for the whole context, with the scores of a chunk; and its tokens."""
    decoder, context = prepared.model.decoder, prepared.opened.context
    rows = 2 * decoder.layers * decoder.kv_heads * decoder.head_dim
    size = 4 * context * (rows + SCORES * decoder.heads * min(CHUNK, context))
    return size, CHUNK
