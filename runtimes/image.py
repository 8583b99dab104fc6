"""From a picture to a vision module's input, in numpy: what GLM-4.1V's image processor does for one fixed grid."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from edgeglm.errors import UsageError
from edgeglm.manifest import Vision


def open_picture(path: Path) -> Image.Image:
    """A WebP, PNG or JPEG file in RGB, turned as its camera says.

    Raises:
        UsageError: It is no picture.
    """
    try:
        with Image.open(path) as image:
            return ImageOps.exif_transpose(image).convert("RGB")
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise UsageError(
            path, f"is not a picture that can be read: {error}", "give a WebP, PNG or JPEG file"
        ) from error


def to_patches(image: Image.Image, vision: Vision) -> NDArray[np.float32]:
    """Resize a picture to the grid, normalize it, and cut it into patches.

    Returns:
        (rows * columns, 3 * temporal_patch_size * patch_size ** 2): the patches of a merged block stand together, the
        channels of a patch one after the other, each as often as a still picture has frames (transformers 5.23,
        ``Glm4vImageProcessorPil``).
    """
    (rows, columns), size, merge = vision.grid, vision.patch_size, vision.merge_size
    resized = image.convert("RGB").resize((columns * size, rows * size), Image.Resampling.BICUBIC)
    mean, std = np.array(vision.mean, np.float32), np.array(vision.std, np.float32)
    pixels: NDArray[np.float32] = (np.asarray(resized, np.float32) / np.float32(255) - mean) / std
    blocks = pixels.reshape(rows // merge, merge, size, columns // merge, merge, size, 3)
    patches = blocks.transpose(0, 3, 1, 4, 6, 2, 5).reshape(rows * columns, 3, 1, size * size)
    return np.repeat(patches, vision.temporal_patch_size, axis=2).reshape(rows * columns, -1)
