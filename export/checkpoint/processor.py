"""Read how a checkpoint prepares pictures, from the file and with the defaults that transformers takes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta

from edgeglm.errors import DamagedFileError, UnsupportedError
from edgeglm.export.checkpoint.files import AGAIN, read_json, shown
from edgeglm.export.checkpoint.reader import Checkpoint

# What transformers 5 writes, with the image processor's settings in it, and what earlier ones wrote.
NESTED, OWN = "processor_config.json", "preprocessor_config.json"
# CLIP's, which GLM-4.1V's processor normalizes by (transformers 5.23, Glm4vImageProcessor).
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
TYPES = ("Glm4vImageProcessor", "Glm4vImageProcessorFast", "Glm4vImageProcessorPil")
# What image processor and vision tower must agree on: its name in each, and the default (transformers 5.23).
SIZES = (
    ("patch_size", "patch_size", 14),
    ("merge_size", "spatial_merge_size", 2),
    ("temporal_patch_size", "temporal_patch_size", 2),
)
# Settings that change nothing of a picture's patches, with the reason.
SILENT = {
    "image_processor_type": "checked against TYPES",
    "feature_extractor_type": "an older name of the same",
    "processor_class": "names what joins tokenizer and image processor",
    "auto_map": "is for code that is not run",
    "do_center_crop": "GLM-4.1V's processor does not crop",
    "crop_size": "the same",
    "do_pad": "GLM-4.1V's processor does not pad",
    "pad_size": "the same",
    "default_to_square": "is of a size that is one number",
    "data_format": "is of the array, not of the patches",
    "input_data_format": "is of arrays, and images are files",
    "device": "is of torchvision's backend",
    "disable_grouping": "is of torchvision's backend",
    "return_tensors": "is of the array, not of the patches",
    "image_seq_length": "is of other processors",
    "_valid_kwargs_names": "lists names",
    "_processor_class": "names what joins tokenizer and image processor",
}
Size = Annotated[int, Meta(ge=1, le=1 << 40)]
Positive = Annotated[float, Meta(gt=0, le=1e6)]
Number = Annotated[float, Meta(ge=-1e6, le=1e6)]
T = TypeVar("T")
# Not a tuple of three, with which msgspec 0.22 crashes beside a number that has limits.
Three = Annotated[list[T], Meta(min_length=3, max_length=3)]


@dataclass(frozen=True)
class ImageProcessor:
    """The settings that prepare a picture: (pixel / 255 - mean) / std, of each RGB channel.

    ``resample`` is Pillow's filter; ``smallest`` and ``largest`` count the pixels of all frames of a temporal patch.
    """

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    resample: int
    smallest: int
    largest: int


class Edges(msgspec.Struct, frozen=True):
    """The fewest and the most pixels of all frames of a patch."""

    shortest_edge: Size
    longest_edge: Size


class Settings(msgspec.Struct, frozen=True):
    """An image processor's settings with transformers' defaults; null turns off what can be turned off."""

    do_resize: bool | None = True
    size: Edges = Edges(112 * 112, 28 * 28 * 15000)
    resample: Annotated[int, Meta(ge=0, le=5)] = 3
    do_rescale: bool | None = True
    rescale_factor: Positive | None = 1 / 255
    do_normalize: bool | None = True
    image_mean: Number | Three[Number] | None = msgspec.field(default_factory=lambda: [*MEAN])
    image_std: Positive | Three[Positive] | None = msgspec.field(default_factory=lambda: [*STD])
    do_convert_rgb: bool | None = True
    patch_size: Size = 14
    merge_size: Size = 2
    temporal_patch_size: Size = 2


def read_processor(checkpoint: Checkpoint, vision: Mapping[str, Any]) -> tuple[ImageProcessor, tuple[str, ...]]:
    """Return the image processor of a checkpoint, and what the user should know of it.

    The settings nested in processor_config.json go before preprocessor_config.json, as in transformers 5.23
    (`ImageProcessingMixin.get_image_processor_dict`).

    Args:
        checkpoint: It has pictures.
        vision: What its config.json says of the image encoder.

    Raises:
        DamagedFileError: A setting is of another type, or no number that can be.
        UnsupportedError: Its patches are not those of the vision tower.
    """
    file, said = _find(checkpoint)
    if file is None:
        return _processor(checkpoint.folder, Settings()), (
            f"{checkpoint.folder} has no {OWN}: images are prepared as GLM-4.1V's own are",
        )
    try:
        settings = msgspec.convert(said, Settings)
    except msgspec.ValidationError as error:
        raise DamagedFileError(file, f"its settings are not valid: {error}", f"correct it, or {AGAIN}") from error
    for own, theirs, usual_size in SIZES:
        value, towers = getattr(settings, own), vision.get(theirs, usual_size)
        if value != towers:
            why = f"its {own} is {value}, and config.json has {towers} for the vision tower"
            raise UnsupportedError(file, why, "take both files of one model")
    return _processor(file, settings), tuple(f"{file}: {note}" for note in _notes(said, settings))


def _find(checkpoint: Checkpoint) -> tuple[Path | None, dict[str, Any]]:
    nested, own = checkpoint.sidecar(NESTED), checkpoint.sidecar(OWN)
    if nested is not None and "image_processor" in (found := read_json(nested)):
        said = found["image_processor"]
        if not isinstance(said, dict):
            raise DamagedFileError(nested, "its image_processor is no object", f"correct it, or {AGAIN}")
        return nested, said
    return (own, read_json(own)) if own else (None, {})


def _processor(file: Path, settings: Settings) -> ImageProcessor:
    """Return the rescaling and normalizing as one: (pixel / 255 - mean) / std."""
    means, deviations = [0.0] * 3, [1.0] * 3
    if settings.do_normalize:
        means, deviations = _three(file, settings.image_mean), _three(file, settings.image_std)
    if settings.do_rescale and settings.rescale_factor is None:
        raise DamagedFileError(file, "its rescale_factor is null", f"correct it, or {AGAIN}")
    factor = 255 * (settings.rescale_factor or 1.0) if settings.do_rescale else 255.0
    if abs(factor - 1) > 1e-9:
        means, deviations = ([value / factor for value in values] for values in (means, deviations))
    if not all(map(math.isfinite, (*means, *deviations))):
        raise DamagedFileError(file, "its mean, deviation or factor is no number", f"correct it, or {AGAIN}")
    size = settings.size
    return ImageProcessor(_tuple(means), _tuple(deviations), settings.resample, size.shortest_edge, size.longest_edge)


def _three(file: Path, value: float | Sequence[float] | None) -> list[float]:
    if value is None:
        raise DamagedFileError(file, "normalizes without a mean or a deviation", f"correct it, or {AGAIN}")
    return [float(value)] * 3 if isinstance(value, int | float) else list(map(float, value))


def _tuple(values: Sequence[float]) -> tuple[float, float, float]:
    return values[0], values[1], values[2]


def _notes(said: Mapping[str, Any], settings: Settings) -> Iterator[str]:
    kind = said.get("image_processor_type") or said.get("feature_extractor_type") or TYPES[0]
    if kind not in TYPES:
        yield f"{str(kind)[:60]!r} is read as GLM-4.1V's image processor"
    if not settings.do_resize:
        yield "do_resize is false, and images are resized to the bundle's size anyway"
    if not settings.do_convert_rgb:
        yield "do_convert_rgb is false, and images are converted to RGB anyway"
    known = {*Settings.__struct_fields__, *SILENT}
    if unknown := sorted(shown(key) for key in said.keys() - known):
        yield f"transformers' image processor does not know {', '.join(unknown)}, and neither does edgeglm"
