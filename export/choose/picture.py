"""The one size of picture that a vision module is made for."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edgeglm.errors import DamagedFileError, UsageError
from edgeglm.export.checkpoint.processor import ImageProcessor
from edgeglm.export.model import Grid

SIZE = re.compile(r"([1-9][0-9]{0,4})x([1-9][0-9]{0,4})")
# A phone's screen, upright: two times as high as wide.
PORTRAIT = 2.0
# 1,024 tokens of 28 x 28 pixels, where neither the checkpoint nor the profile says less.
DEFAULT_PIXELS = 1024 * 28 * 28
# A phone's screen, and below which share of the tokens that it takes with the checkpoint's processor a note says so.
SCREEN, FAR_FEWER = (1080, 2400), 2 / 3


@dataclass(frozen=True)
class Picture:
    """Rows and columns of patches, the tokens they take, and a sentence for the user who asked for another size."""

    grid: Grid
    tokens: int
    note: str | None = None


def parse_image_size(text: str) -> tuple[int, int]:
    """Return the width and height in ``504x1008``. Raises UsageError for anything else."""
    match = SIZE.fullmatch(text)
    if match is None:
        raise UsageError(f"--image-size {text}", "is not a size in pixels", "write WIDTHxHEIGHT, such as 504x1008")
    return int(match[1]), int(match[2])


def choose_picture(
    vision: Mapping[str, Any], processor: ImageProcessor, limit: int | None, asked: tuple[int, int] | None
) -> Picture:
    """Choose the grid for the size `asked`, else for an upright screen as large as processor and profile allow.

    Args:
        vision: What config.json says of the image encoder.
        processor: What its image processor does.
        limit: The profile's largest picture, in pixels.
        asked: Width and height in pixels.

    Raises:
        DamagedFileError: A size of the image encoder is none.
    """
    patch, merge = _size(vision, "patch_size", 14), _size(vision, "spatial_merge_size", 2)
    unit = patch * merge
    width, height = asked or _upright(_allowed(vision, processor, limit))
    columns, rows = (max(1, round(side / unit)) for side in (width, height))
    note = None
    if asked and (columns * unit, rows * unit) != asked:
        note = f"--image-size {width}x{height} is not whole in merged patches of {unit}: {columns * unit}x{rows * unit}"
    elif not asked:
        own = processor_size(SCREEN, processor, unit, _size(vision, "temporal_patch_size", 2))
        note = _fewer(rows * columns, own[0] * own[1] // unit**2, (columns * unit, rows * unit), own)
    return Picture((rows * merge, columns * merge), rows * columns, note)


def processor_size(picture: tuple[int, int], processor: ImageProcessor, unit: int, frames: int) -> tuple[int, int]:
    """Return the width and height that the checkpoint's own processor gives an image.

    It is ``smart_resize`` of Glm4vImageProcessor (transformers 5.23).

    Args:
        picture: Its width and height, at least `unit` pixels a side.
        processor: The checkpoint's limits.
        unit: Both results are multiples of it.
        frames: A frame counts so many times against the limits.
    """
    width, height = (round(side / unit) * unit for side in picture)
    pixels = frames * picture[0] * picture[1]
    if frames * width * height > processor.largest:
        scale = math.sqrt(pixels / processor.largest)
        width, height = (max(unit, math.floor(side / scale / unit) * unit) for side in picture)
    elif frames * width * height < processor.smallest:
        scale = math.sqrt(processor.smallest / pixels)
        width, height = (math.ceil(side * scale / unit) * unit for side in picture)
    return width, height


def _fewer(tokens: int, own: int, size: tuple[int, int], theirs: tuple[int, int]) -> str | None:
    if tokens >= FAR_FEWER * own:
        return None
    return (
        f"an image is {size[0]}x{size[1]} here and takes {tokens} tokens; the checkpoint's own processor gives a "
        f"screen of {SCREEN[0]}x{SCREEN[1]} {own}: --image-size {theirs[0]}x{theirs[1]} keeps them"
    )


def _allowed(vision: Mapping[str, Any], processor: ImageProcessor, limit: int | None) -> int:
    # The processor counts the pixels of all frames of a temporal patch (transformers 5.23, smart_resize).
    pixels = processor.largest // _size(vision, "temporal_patch_size", 2)
    return max(1, min(pixels, limit or DEFAULT_PIXELS))


def _size(vision: Mapping[str, Any], key: str, usual: int) -> int:
    """Return a size, `usual` where the config leaves it to transformers (5.23, Glm4vVisionConfig)."""
    value = vision.get(key, usual)
    if not isinstance(value, int) or value < 1:
        raise DamagedFileError("config.json", f"has {value!r} as {key} of its image encoder", "download it again")
    return value


def _upright(pixels: int) -> tuple[float, float]:
    width = math.sqrt(pixels / PORTRAIT)
    return width, width * PORTRAIT
