"""Size the files of a TFLite module, and what calibrating them keeps, from headers."""

from __future__ import annotations

import math
from collections.abc import Mapping

from edgeglm.export.families.registry import image_config, module_of
from edgeglm.export.prepare.header_checks import part_of
from edgeglm.export.prepare.types import Opened
from edgeglm.export.targets.litert.convert_task import Span
from edgeglm.roles import DECODER, TABLE, ModuleName

MIB = 1 << 20
# Weights of one file in fp32: a constant, so that a bundle's bytes do not depend on the machine's memory.
FILE_BYTES = 512 * MIB
# Copies of attention's scores at a time.
SCORES = 3
# The most that the scores of all blocks may take, all of which a calibration keeps; else nothing is calibrated.
CALIBRATE_BYTES = 128 * MIB
# Tokens of a prefill: INT8 products are as fast with more, and a short prompt is padded to it.
CHUNK = 128


def files_of(opened: Opened, module: ModuleName) -> dict[str, Span]:
    """Return the files of a module, and what each holds: as much as `FILE_BYTES` allow, and at least one part."""
    sizes = part_sizes(opened, module)
    layers = sum(part.startswith("layer.") for part in sizes)
    spans, start, front = [], 0, True
    for stop in range(1, layers + 1):
        following = Span(start, stop + 1, front, False) if stop < layers else Span(start, stop, front, True)
        if span_bytes(sizes, following) > FILE_BYTES:
            spans.append(Span(start, stop, front, False))
            start, front = stop, False
        elif stop == layers:
            spans.append(following)
    if not spans[-1].back:
        spans.append(Span(layers, layers, False, True))
    if len(spans) == 1:
        return {"model.tflite": spans[0]}
    return {f"model-{index:03}.tflite": span for index, span in enumerate(spans)}


def scores(opened: Opened) -> int:
    """Return the bytes of the scores of one vision block's attention."""
    rows, columns = opened.probe.grid or (0, 0)
    return 4 * _vision_size(opened, "num_heads", 12) * (rows * columns) ** 2


def all_scores(opened: Opened) -> int:
    """Return the bytes of the scores of all vision blocks, as a calibration keeps them."""
    return SCORES * _vision_size(opened, "depth", 24) * scores(opened)


def _vision_size(opened: Opened, name: str, usual: int) -> int:
    """Return a size of the vision tower; `usual` is transformers' for a config that leaves it out (5.23)."""
    size = image_config(opened.checkpoint.config).get(name, usual)
    return size if isinstance(size, int) else usual  # transformers says what is wrong with others


def part_sizes(opened: Opened, module: ModuleName) -> dict[str, int]:
    """Return the bytes of each part's weights in fp32."""
    sizes: dict[str, int] = {}
    tensors = opened.checkpoint.tensors.values()
    for tensor in tensors:
        if module_of(tensor.name) == module:
            sizes[part_of(tensor.name)] = sizes.get(part_of(tensor.name), 0) + 4 * math.prod(tensor.shape)
    if module == DECODER and opened.checkpoint.config.get("tie_word_embeddings"):
        table = sum(4 * math.prod(tensor.shape) for tensor in tensors if module_of(tensor.name) == TABLE)
        sizes["back"] = sizes.get("back", 0) + table
    return sizes


def span_bytes(sizes: Mapping[str, int], span: Span) -> int:
    """Return the bytes of what a file holds, from those of the parts."""
    ends = (sizes.get("front", 0) if span.front else 0) + (sizes.get("back", 0) if span.back else 0)
    return ends + sum(sizes.get(f"layer.{layer}", 0) for layer in span.layers)
