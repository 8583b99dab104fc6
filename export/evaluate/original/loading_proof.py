"""The reading of a checkpoint, proven: its first layers computed by transformers' own loading and by edgeglm's.

The streamed original finds weights, rotary embedding and norms by edgeglm's description of the family, as the exporter
does, and would share its mistakes. So transformers' own class, cut to two layers and a part of the vocabulary, takes
the checkpoint's config and weights by its own loading, with its own ties and renamings, and both must agree.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from transformers.utils.logging import disable_progress_bar

from edgeglm import manifest
from edgeglm.errors import AccuracyError, DamagedFileError, UnsupportedError
from edgeglm.export.evaluate.original.decoder import StreamedDecoder
from edgeglm.export.evaluate.original.memory import base_bytes
from edgeglm.export.evaluate.original.tower import StreamedTower
from edgeglm.export.evaluate.original.whole import image_processor
from edgeglm.export.families.building import reference_config
from edgeglm.export.families.registry import encoder_specs, image_config, image_key
from edgeglm.export.model import HasShape, Original
from edgeglm.runtimes.core.assembly import assemble
from edgeglm.runtimes.inputs.image import to_patches

LAYERS, VOCABULARY = 2, 256
# Token of a picture among those that are left, its rows and columns of tokens, and the text on both sides of it.
IMAGE, GRID, TEXT = 5, (4, 6), 12
# Relative; fp32 in another order differs by 1e-6.
LIMIT = 1e-4
LAYER = re.compile(r"\.(\d{1,6})\.")


def proof_bytes(original: Original) -> int:
    """Return what `prove_reading` takes: the cut model, and the block that edgeglm fills."""
    return base_bytes() + 6 * sum(math.prod(_cut_shape(original, name)) for name in _kept(original))


def prove_reading(original: Original) -> None:
    """Compare the logits of one prompt, with a picture where the model sees any.

    Raises:
        UnsupportedError: They differ, or transformers cannot load the checkpoint.
        DamagedFileError: transformers misses a weight.
    """
    model, prompt = _load(original), _prompt(original)
    with torch.inference_mode():
        theirs = model(**prompt.inputs).logits[0].numpy()
        mine = _logits(Cut(original), prompt).numpy()
    error = _relative(mine, theirs)
    if not error <= LIMIT:
        why = f"transformers reads it otherwise than edgeglm: the logits of its first layers differ by {error:.2g}"
        raise UnsupportedError(original.folder, why, "nothing measured of it would be right; report it")


def prove_pictures(bundle: Path, vision: manifest.Vision, original: Original) -> None:
    """Compare what a bundle makes of a picture's pixels with what the checkpoint's image processor does.

    Args:
        bundle: Its folder.
        vision: What its manifest says about pictures.
        original: The checkpoint.

    Raises:
        AccuracyError: They differ.
    """
    processor = image_processor(original.folder)
    noise = np.random.default_rng(0).integers(0, 256, (64, 48, 3), np.uint8)
    rows, columns = (count * vision.patch_size for count in vision.grid)
    image = Image.fromarray(noise)
    resized = image.resize((columns, rows), Image.Resampling(int(processor.resample)))
    theirs = processor(images=[resized], do_resize=False, return_tensors="np")["pixel_values"]
    error = _relative(to_patches(image, vision), theirs)
    if not error <= LIMIT:
        why = (
            f"pixels become other numbers than by the image processor of {original.folder} (they differ by {error:.2g})"
        )
        raise AccuracyError(bundle, why, "export it again from that checkpoint")


class Cut:
    """A checkpoint of which a config says that it has fewer layers; the weights are read from the whole."""

    def __init__(self, original: Original) -> None:
        self.folder, self.parameters, self.tensors = original.folder, original.parameters, original.tensors
        self.find, self.rows = original.find, original.rows
        self.read_bytes, self.decode, self.is_plain = original.read_bytes, original.decode, original.is_plain
        self.adapter_sha256 = original.adapter_sha256
        self.config: Mapping[str, Any] = cut_config(original.config)


def cut_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a config.json with fewer layers, of text and vision."""
    cut = dict(config)
    for part in ("text_config", *(encoder.config for encoder in encoder_specs())):
        if isinstance(cut.get(part), Mapping):
            cut[part] = cut_config(cut[part])
    for key in ("num_hidden_layers", *(encoder.depth for encoder in encoder_specs())):
        if key in cut:
            cut[key] = min(LAYERS, cut[key])
    return cut


@dataclass(frozen=True)
class Prompt:
    """A prompt as transformers takes it, and as edgeglm's own classes do."""

    inputs: dict[str, Tensor]
    tokens: NDArray[np.int64]
    is_picture: NDArray[np.bool_]


def _prompt(original: Original) -> Prompt:
    random = np.random.default_rng(1)
    words = random.integers(IMAGE + 1, min(VOCABULARY, _vocabulary(original)), 2 * TEXT)
    if image_key(original.config) is None:
        return Prompt({"input_ids": torch.from_numpy(words[None])}, words, np.zeros(len(words), bool))
    config = image_config(reference_config(original.folder))
    merge, grid = config.spatial_merge_size, (GRID[0] * config.spatial_merge_size, GRID[1] * config.spatial_merge_size)
    count = grid[0] * grid[1] // merge**2
    tokens = np.concatenate([words[:TEXT], np.full(count, IMAGE), words[TEXT:]])
    is_picture = tokens == IMAGE
    width = config.in_channels * config.temporal_patch_size * config.patch_size**2
    inputs = {
        "input_ids": torch.from_numpy(tokens[None]),
        "mm_token_type_ids": torch.from_numpy(is_picture[None].astype(np.int64)),
        "pixel_values": torch.from_numpy(random.standard_normal((grid[0] * grid[1], width), np.float32)),
        "image_grid_thw": torch.tensor([[1, *grid]]),
    }
    return Prompt(inputs, tokens, is_picture)


def _load(original: Original) -> Any:  # noqa: ANN401 (a class of transformers, chosen by name)
    """Return transformers' own model of the checkpoint, cut, filled by its own loading."""
    config = reference_config(original.folder)
    architecture = getattr(transformers, config.architectures[0])
    text = config.get_text_config()
    text.num_hidden_layers = min(LAYERS, text.num_hidden_layers)
    text.vocab_size = min(VOCABULARY, text.vocab_size)
    text.pad_token_id = config.pad_token_id = None
    if vision := image_config(config):
        vision.depth = min(LAYERS, vision.depth)
        config.image_token_id = IMAGE
    disable_progress_bar()
    state = {name: torch.from_numpy(_rows(original, name)) for name in _kept(original)}
    try:
        model, said = architecture.from_pretrained(
            None, config=config, state_dict=state, dtype=torch.float32, output_loading_info=True
        )
    except (RuntimeError, ValueError) as error:
        why = f"transformers cannot load it: {error}"
        raise UnsupportedError(original.folder, why[:500], "take an unchanged checkpoint") from error
    if missing := sorted(said["missing_keys"]):
        why = f"transformers finds no weight for {missing[0]}, and for {len(missing) - 1} more"
        raise DamagedFileError(original.folder, why, "take a whole checkpoint")
    return model.eval()


def _logits(cut: Cut, prompt: Prompt) -> Tensor:
    """Return the same by the classes that stream an original."""
    decoder, features = StreamedDecoder(cut), list[NDArray[np.float32]]()
    if "pixel_values" in prompt.inputs:
        tower = StreamedTower(cut)
        features = [tower.features(prompt.inputs["pixel_values"], prompt.inputs["image_grid_thw"]).numpy()]
    mrope = bool(decoder.decoder.mrope_section)
    assembly = assemble(prompt.tokens.tolist(), prompt.is_picture.tolist(), [GRID] * len(features), mrope=mrope)
    hidden = decoder.embed(prompt.tokens)[None]
    assembly.place(hidden[0].numpy(), features)
    decoder.run([hidden], [assembly.positions])
    rows = cut.rows(decoder.decoder.head, 0, min(VOCABULARY, decoder.decoder.vocabulary))
    return hidden[0] @ torch.from_numpy(rows).T


def _kept(original: Original) -> list[str]:
    """Return the names of all weights but those of further layers, by their number alone."""
    return [
        name for name in original.tensors if (match := LAYER.search(name)) is None or int(match[1]) < LAYERS
    ]  # fmt: skip


def _cut_shape(original: Original, name: str) -> tuple[int, ...]:
    tensor: HasShape = original.tensors[name]
    if len(tensor.shape) == 2 and tensor.shape[0] == _vocabulary(original):
        return min(VOCABULARY, tensor.shape[0]), tensor.shape[1]
    return tensor.shape


def _rows(original: Original, name: str) -> NDArray[np.float32]:
    """Return only the first rows of tables with a row for each word."""
    shape = _cut_shape(original, name)
    return original.rows(name, 0, shape[0] if shape else None).reshape(shape)


def _vocabulary(original: Original) -> int:
    text = original.config.get("text_config")
    size = (text if isinstance(text, Mapping) else original.config).get("vocab_size")
    return int(size) if isinstance(size, int) else int(reference_config(original.folder).get_text_config().vocab_size)


def _relative(got: NDArray[np.float32], want: NDArray[np.float32]) -> float:
    if got.shape != want.shape:
        return math.inf
    return float(np.linalg.norm(got - want) / max(float(np.linalg.norm(want)), 1e-12))
