"""Blank regions of images alike, such as a status bar's clock: images that differ only there are one image."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Sequence
from typing import NamedTuple

from PIL import Image

from edgeglm.errors import UsageError
from edgeglm.runtimes.inputs.image import Source, open_picture, picture_name, picture_size, to_rgb

REGION = re.compile(r"([0-9]{1,6}),([0-9]{1,6}),([0-9]{1,6}),([0-9]{1,6})", re.ASCII)
FORM = "give x,y,width,height in pixels, such as 0,0,1080,80"
BLANK = (0, 0, 0)


class Mask(NamedTuple):
    """A region in pixels of an image, as its EXIF turns it: left, top, width and height."""

    left: int
    top: int
    width: int
    height: int

    def __str__(self) -> str:
        return ",".join(map(str, self))


def parse_mask(text: str) -> Mask:
    """Return the region in a text such as ``0,0,1080,80``.

    Raises:
        UsageError: It is none, or empty.
    """
    match = REGION.fullmatch(text)
    mask = Mask(*map(int, match.groups())) if match else None
    if mask is None or not (mask.width and mask.height):
        raise UsageError(f"--mask {text}", "is no region", FORM)
    return mask


def open_masked(source: Source, masks: Sequence[Mask], room: int | None = None) -> Image.Image:
    """Return an image whose masked regions are black.

    Args:
        source: As of `open_picture`.
        masks: Regions of the image as it is given; none leave it as `open_picture` returns it.
        room: Bytes that decoding may take, if that is limited.

    Raises:
        UsageError: A region is not within the image.
        EdgeglmError: As `open_picture`.
    """
    image = open_picture(source, room)
    if not masks:
        return image
    width, height = picture_size(source)
    scale = image.width / width  # of a JPEG that was decoded smaller
    image = to_rgb(image)
    for mask in masks:
        if mask.left + mask.width > width or mask.top + mask.height > height:
            name = picture_name(source)
            raise UsageError(f"--mask {mask}", f"is not within {name}, which has {width}x{height} pixels", FORM)
        right, bottom = math.ceil((mask.left + mask.width) * scale), math.ceil((mask.top + mask.height) * scale)
        image.paste(BLANK, (int(mask.left * scale), int(mask.top * scale), right, bottom))
    return image


def hash_masked(source: Source, masks: Sequence[Mask], room: int | None = None) -> bytes:
    """Return the SHA-256 of an image's pixels outside the masks, its size and the masks. Raises as `open_masked`."""
    image = open_masked(source, masks, room)
    digest = hashlib.sha256(f"{image.size} {sorted(masks)}\n".encode())
    digest.update(image.tobytes())
    return digest.digest()
