"""Turn an image into the vision module's input, in numpy, as GLM-4.1V's image processor does for one fixed grid."""

from __future__ import annotations

import hashlib
import io
import math
import os
import stat
import warnings
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import PIL
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError, features

from edgeglm.digest import hash_range
from edgeglm.errors import BudgetError, EdgeglmError, UsageError
from edgeglm.manifest import Vision
from edgeglm.units import format_size

# Not all that Pillow reads: it would start a PostScript interpreter for one of its formats.
FORMATS = ("WEBP", "PNG", "JPEG")
MAX_BYTES = 128 << 20  # of a file; a WebP is read whole
MAX_PIXELS = 1 << 24  # twice a 4K screen
PIXEL_BYTES = 9  # that decoding one and resizing it takes at most, measured over modes and EXIF turns
WEBP_PIXEL_BYTES = 17  # Pillow decodes a WebP as an animation
# A picture's sides are changed against one another by rounding to whole patches, and by phones of different length.
SQUEEZE = 1.2
# Shapes whose stretch, as a logarithm, differs by less are alike; then pixels decide.
ALIKE = 0.05
# EXIF's tag, and its values that exchange the sides.
ORIENTATION, TURNED = 0x0112, (5, 6, 7, 8)
STRIP = 64  # rows that are converted at a time


Source = Path | bytes  # of a picture: its file, or what such a file holds


def open_picture(source: Source, room: int | None = None) -> Image.Image:
    """Return a picture as its EXIF turns it, in the mode of its file; of an animation the first frame.

    A JPEG of more than `MAX_PIXELS`, and of up to four times as many, is decoded at half its size.

    Args:
        source: A WebP, PNG or JPEG.
        room: Bytes that decoding may take, if that is limited.

    Raises:
        UsageError: It cannot be read, is no WebP, PNG or JPEG, or is too large.
        BudgetError: There is no room for it.
    """
    try:
        _check(source)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd metadata, and of sizes that are allowed here
            return _load(source, room)
    except EdgeglmError:
        raise
    except UnidentifiedImageError as error:
        raise _unreadable(source, "it is no WebP, PNG or JPEG, or a damaged one") from error
    except Image.DecompressionBombError as error:
        raise _too_large(source) from error
    except Exception as error:  # of a damaged file Pillow says so with errors of many kinds
        raise _unreadable(source, getattr(error, "strerror", None) or str(error) or type(error).__name__) from error


def picture_size(source: Source) -> tuple[int, int]:
    """Read the width and the height of a picture, as its EXIF turns it, from its header.

    Raises:
        UsageError: It cannot be read, or is no WebP, PNG or JPEG.
    """
    try:
        _check(source)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS) as image:
                turned = image.getexif().get(ORIENTATION) in TURNED
                return (image.height, image.width) if turned else image.size
    except EdgeglmError:
        raise
    except Exception as error:
        raise _unreadable(source, getattr(error, "strerror", None) or "it is no WebP, PNG or JPEG") from error


def nearest_shape(width: int, height: int, shapes: Sequence[Vision]) -> Vision:
    """Choose the shape that a picture of a size in pixels is nearest to: by its sides' ratio first, then by pixels."""

    def stretch(vision: Vision) -> float:
        rows, columns = vision.grid
        return abs(math.log(width * rows / (height * columns)))

    least = min(map(stretch, shapes))
    alike = [vision for vision in shapes if stretch(vision) <= least + ALIKE]
    pixels = width * height
    return min(alike, key=lambda vision: abs(math.log(pixels / (math.prod(vision.grid) * vision.patch_size**2))))


def hash_picture(source: Source) -> bytes:
    """Return the SHA-256 of a picture's bytes.

    Raises:
        UsageError: It cannot be read, or is too large.
    """
    try:
        _check(source)
        if isinstance(source, bytes):
            return hashlib.sha256(source).digest()
        digest = hashlib.sha256()
        with source.open("rb") as file:
            hash_range(digest, file.fileno(), 0, os.fstat(file.fileno()).st_size)
        return digest.digest()
    except (OSError, ValueError) as error:
        raise _unreadable(source, getattr(error, "strerror", None) or str(error)) from error


@lru_cache(1)
def picture_reader() -> str:
    """Return what a picture's pixels depend on beside its file: Pillow and the libraries that decode for it."""
    decoders = (f"{name} {features.version(name)}" for name in ("libjpeg_turbo", "webp"))
    return ", ".join((f"Pillow {PIL.__version__}", *decoders))


def to_patches(image: Image.Image, vision: Vision) -> NDArray[np.float32]:
    """Resize a picture to the grid, normalize it, and cut it into patches.

    Transparent parts become white. Of 16 bits of grey the upper 8 count, where transformers makes nearly all white.

    Returns:
        (rows * columns, 3 * temporal_patch_size * patch_size ** 2): the patches of a merged block stand together, the
        channels of a patch one after the other, each as often as a still picture has frames (transformers 5.23,
        ``Glm4vImageProcessorPil``).
    """
    (rows, columns), size, merge = vision.grid, vision.patch_size, vision.merge_size
    resized = to_rgb(image).resize((columns * size, rows * size), Image.Resampling(vision.resample))
    mean, std = np.array(vision.mean, np.float32), np.array(vision.std, np.float32)
    values: NDArray[np.float32] = (np.arange(256, dtype=np.float32)[:, None] / np.float32(255) - mean) / std
    blocks = np.asarray(resized).reshape(rows // merge, merge, size, columns // merge, merge, size, 3)
    bytewise = blocks.transpose(0, 3, 1, 4, 6, 2, 5).reshape(rows * columns, 3, 1, size * size)
    patches = np.empty((rows * columns, 3, vision.temporal_patch_size, size * size), np.float32)
    for channel in range(3):  # a byte has one of 256 values, which are computed once
        patches[:, channel] = values[:, channel][bytewise[:, channel]]
    return patches.reshape(rows * columns, -1)


def picture_bytes(vision: Vision) -> int:
    """Return the bytes of a picture's patches as the vision module takes them."""
    (rows, columns), size = vision.grid, vision.patch_size
    return 4 * 3 * vision.temporal_patch_size * rows * columns * size * size


def merged_grid(vision: Vision) -> tuple[int, int]:
    """Return the rows and columns of tokens that a picture takes."""
    return vision.grid[0] // vision.merge_size, vision.grid[1] // vision.merge_size


def squeezed(image: Image.Image, vision: Vision) -> str | None:
    """Return a clause for a picture whose sides the grid changes by more than `SQUEEZE` against one another."""
    (rows, columns), size = vision.grid, vision.patch_size
    width, height = columns * size, rows * size
    ratio = image.width * height / (image.height * width)
    times = max(ratio, 1 / ratio)
    if times <= SQUEEZE:
        return None
    side = "width" if ratio > 1 else "height"
    return f"{image.width}x{image.height} is squeezed {times:.1f} times in {side} into the bundle's {width}x{height}"


def _check(source: Source) -> None:
    """Refuse what would never end, such as a pipe, or take too much memory."""
    if isinstance(source, bytes):
        length = len(source)
    else:
        status = source.stat()
        length = status.st_size
        if not stat.S_ISREG(status.st_mode):
            raise _unreadable(source, "it is not a regular file")
    if length > MAX_BYTES:
        raise UsageError(picture_name(source), f"is larger than {format_size(MAX_BYTES)}", "give a smaller image")


def _load(source: Source, room: int | None) -> Image.Image:
    with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS) as image:
        if image.width * image.height > MAX_PIXELS:
            image.draft(None, (image.width // 2, image.height // 2))  # only a JPEG's decoder can; others ignore it
        if image.width * image.height > MAX_PIXELS:
            raise _too_large(source)
        needed = image.width * image.height * (WEBP_PIXEL_BYTES if image.format == "WEBP" else PIXEL_BYTES)
        if room is not None and needed > room:
            why = f"decoding it takes {format_size(needed)}, and --max-ram leaves {format_size(max(0, room))}"
            raise BudgetError(picture_name(source), why, "give a smaller image, or more memory")
        image.load()
        ImageOps.exif_transpose(image, in_place=True)
        return image


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert a picture in strips, so that no more than it and its copy are in memory; transparency becomes white."""
    if image.mode == "RGB" and image.info.get("transparency") is None:
        return image
    rgb = Image.new("RGB", image.size)
    for top in range(0, image.height, STRIP):
        strip = image.crop((0, top, image.width, min(top + STRIP, image.height)))
        rgb.paste(_opaque(strip), (0, top))
    return rgb


def _opaque(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if "A" in image.getbands() or image.info.get("transparency") is not None:
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
    return image.convert("RGB")


def picture_name(source: Source) -> object:
    """Return what errors call a picture."""
    return "the image" if isinstance(source, bytes) else source


def _unreadable(source: Source, why: str) -> UsageError:
    return UsageError(picture_name(source), f"is not a readable image: {why}", "give a WebP, PNG or JPEG file")


def _too_large(source: Source) -> UsageError:
    return UsageError(
        picture_name(source), f"has more pixels than the {MAX_PIXELS} that are taken", "give a smaller image"
    )
