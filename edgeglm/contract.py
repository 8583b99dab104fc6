"""Check that the parts of a manifest agree, so that code that runs a bundle need not ask again.

A manifest is typed before it comes here. What is compared here is what two of its keys say of one thing: a module's
file and its folder, the embedding's rows and their bytes, tensors and the model's dimensions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import prod
from typing import TYPE_CHECKING

from edgeglm.engines import ENGINES
from edgeglm.roles import DECODER, ENCODERS, GRAPH, TABLE

if TYPE_CHECKING:
    from edgeglm.manifest import GraphManifest, Manifest, Model, Module, Sealed, Tensor, Vision

# Bytes of a value of the embedding's rows; of int8, behind them, a float32 for each row.
ROW_VALUES = {"fp32": 4, "fp16": 2, "int8": 1}
SCALE = 4
# Where a part of a file begins: docs/bundle.md.
PAGE, LINE = 4096, 64
RGB = 3

# How the names of keys and values begin: all of them head by head, a buffer token by token, and its new rows.
STATES = {"state": ("past_", "present_", "key_", "value_"), "cache": ("cache_",), "new": ("new_",)}

# How a decoder's graph for several slots calls the numbers of their rows.
COUNTS = "counts"

Fault = tuple[str, str]  # the dotted key, and what is wrong with it
Shape = tuple[int | None, ...]  # None where any size may stand


def slot_name(name: str, slot: int) -> str:
    """Return the name of a decoder's input or output for one of several slots."""
    return f"{name}.slot{slot}"


def scales_offset(vocabulary: int, hidden_size: int) -> int:
    """Return where in an int8 ``rows.bin`` the scales begin, in bytes."""
    align = PAGE if SCALE * vocabulary >= PAGE else LINE
    return -(-vocabulary * hidden_size // align) * align


def faults(manifest: Sealed) -> Iterator[Fault]:
    """Yield every disagreement between files and modules."""
    yield from (("files", f"{path!r} is not a path inside the bundle") for path in manifest.files if not _inside(path))
    for index, module in enumerate(manifest.modules):
        for key, why in _module_faults(manifest, module):
            yield f"modules[{index}].{key}", why
    if len({module.name for module in manifest.modules}) < len(manifest.modules):
        yield "modules", "has a name twice"


def graph_faults(manifest: GraphManifest) -> Iterator[Fault]:
    """Yield every disagreement in the manifest of a graph's bundle."""
    yield from faults(manifest)
    if [module.name for module in manifest.modules] != [GRAPH]:
        yield "modules", "is not one graph"


def model_faults(manifest: Manifest) -> Iterator[Fault]:
    """Yield every disagreement in the manifest of a language model's bundle."""
    yield from faults(manifest)
    modules = {module.name: module for module in manifest.modules}
    for name in (TABLE, DECODER):
        if name not in modules:
            yield "modules", f"has no {name}"
    if GRAPH in modules:
        yield "modules", "has a graph beside a model"
    for name in ENCODERS:
        if name in modules and getattr(manifest.model, name) is None:
            yield f"model.{name}", f"is missing, and there is a {name} module"
    if embedding := modules.get(TABLE):
        yield from _embedding_faults(manifest, embedding)
    for index, module in enumerate(manifest.modules):
        for tensor, why in _shape_faults(manifest.model, module):
            yield f"modules[{index}]", f"{tensor} {why}"
    yield from _model_faults(manifest.model)
    vocabulary, generation = manifest.model.vocabulary, manifest.generation
    if max(generation.eos_token_ids, default=0) >= vocabulary:
        yield "generation.eos_token_ids", f"has a token that a vocabulary of {vocabulary} does not have"
    if not manifest.predicted.device_peak_rss_bytes:
        yield "predicted.device_peak_rss_bytes", "is empty"


def _inside(path: str) -> bool:
    parts = path.split("/")
    return path.isprintable() and not any(part in ("", ".", "..") for part in parts)


def _module_faults(manifest: Sealed, module: Module) -> Iterator[Fault]:
    opened = [("file", module.file)]
    opened += [("compiled.file", module.compiled.file)] if module.compiled else []
    opened += [(f"shapes[{index}].file", shape.file) for index, shape in enumerate(module.shapes)]
    opened += [("slots.file", module.slots.file)] if module.slots else []
    for key, file in opened:
        if file not in manifest.files:
            yield key, f"{file!r} is not in files"
        elif not file.startswith(f"{module.name}/"):
            yield key, f"{file!r} is not in the folder of the {module.name}"
    if (module.precision == "mixed") != bool(module.parts):
        yield "parts", "does not fit the precision"
    if module.is_table != (module.format == "rows"):
        yield "format", f"{module.format!r} is not one of the {module.name}'s"
    if module.format != (ENGINES[module.engine].reads if module.engine else "rows"):
        yield "engine", f"{module.engine!r} does not read {module.format!r}"
    if module.engine and ENGINES[module.engine].toolchain and not getattr(manifest.profile.toolchain, module.engine):
        yield "engine", f"is {module.engine!r}, and the profile has no toolchain.{module.engine}"


def _embedding_faults(manifest: Manifest, embedding: Module) -> Iterator[Fault]:
    model, value = manifest.model, ROW_VALUES.get(embedding.precision)
    where = f"modules[{manifest.modules.index(embedding)}]"
    if value is None:
        yield f"{where}.precision", f"{embedding.precision!r} is not one of {', '.join(ROW_VALUES)}"
    elif embedding.file in manifest.files:
        needed = value * model.vocabulary * model.hidden_size
        if embedding.precision == "int8":
            needed = scales_offset(model.vocabulary, model.hidden_size) + SCALE * model.vocabulary
        if (there := manifest.files[embedding.file].bytes) != needed:
            rows = f"{model.vocabulary} rows of {model.hidden_size} in {embedding.precision}"
            yield "model.vocabulary", f"{rows} take {needed} bytes, and {embedding.file} has {there}"


def _model_faults(model: Model) -> Iterator[Fault]:
    if model.heads % model.kv_heads:
        yield "model.heads", f"{model.heads} is no multiple of kv_heads, {model.kv_heads}"
    rotary = model.head_dim * model.rope.partial_rotary_factor
    if model.rope.mrope_sections and 2 * sum(model.rope.mrope_sections) != round(rotary):
        yield "model.rope.mrope_sections", f"sum to another number than half of the {rotary:g} that rotate"
    if (audio := model.audio) and audio.audio_token_id >= model.vocabulary:
        yield "model.audio", f"has a token that a vocabulary of {model.vocabulary} does not have"
    if not (vision := model.vision):
        return
    if any(size % vision.merge_size for size in vision.grid):
        yield "model.vision.grid", f"is no multiple of merge_size, {vision.merge_size}"
    if max(vision.image_start_token_id, vision.image_token_id, vision.image_end_token_id) >= model.vocabulary:
        yield "model.vision", f"has a token that a vocabulary of {model.vocabulary} does not have"


def _shape_faults(model: Model, module: Module) -> Iterator[Fault]:
    """Yield the tensors of a module that do not have the model's dimensions."""
    for tensor in (*module.inputs, *module.outputs):
        if module.encodes is None and not _fits(tensor.shape, _expected(model, tensor)):
            yield tensor.name, f"has the shape {list(tensor.shape)}, which is not the model's"
    if module.is_image and model.vision:
        graphs = [(model.vision.grid, (*module.inputs, *module.outputs))]
        graphs += [(shape.grid, (*shape.inputs, *shape.outputs)) for shape in module.shapes]
        for grid, tensors in graphs:
            yield from _size_faults(_vision_sizes(model, model.vision, grid), tensors)
    if module.is_audio and (audio := model.audio):
        sizes = {"input_features": audio.mel_bins * audio.frames, "features": audio.tokens * model.hidden_size}
        yield from _size_faults(sizes, (*module.inputs, *module.outputs))


def _vision_sizes(model: Model, vision: Vision, grid: tuple[int, int]) -> dict[str, int]:
    """Return the numbers of values of a vision module's tensors, by their names."""
    patch = RGB * vision.temporal_patch_size * vision.patch_size**2
    return {
        "pixel_values": prod(grid) * patch,
        "features": prod(grid) // vision.merge_size**2 * model.hidden_size,
    }


def _size_faults(sizes: Mapping[str, int], tensors: Sequence[Tensor]) -> Iterator[Fault]:
    for tensor in tensors:
        sized = [size for size in tensor.shape if isinstance(size, int)]
        if tensor.name in sizes and len(sized) == len(tensor.shape) and prod(sized) != sizes[tensor.name]:
            yield tensor.name, f"has the shape {list(tensor.shape)}, and not {sizes[tensor.name]} values"


def _expected(model: Model, tensor: Tensor) -> Shape | None:
    """Return the shape of a tensor, by its name; None of one that may have any."""
    kind, _, _ = tensor.name.partition(".")
    kind = next((of for of, names in STATES.items() if kind.startswith(names)), kind)
    shapes: dict[str, Shape] = {
        "hidden": (None,) * (len(tensor.shape) - 1) + (model.hidden_size,),
        "logits": (1, None, model.vocabulary),
        "position_ids": (3 if model.rope.mrope_sections else 1, 1, None),
        "state": (1, model.kv_heads, None, model.head_dim),
        "cache": (None, model.kv_heads, model.head_dim),
        "new": (1, None, model.kv_heads * model.head_dim),
    }
    return shapes.get(kind)


def _fits(shape: Sequence[int | str], expected: Shape | None) -> bool:
    if expected is None:
        return True
    pairs = zip(shape, expected, strict=False)
    return len(shape) == len(expected) and all(wanted is None or size in (wanted,) for size, wanted in pairs)
