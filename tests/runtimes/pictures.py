"""Pictures for tests: of every kind that the runner takes, and of some that it must refuse."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image


def noise(size: tuple[int, int], mode: str = "RGB") -> Image.Image:
    """Soft noise; where the mode has an alpha channel, it differs from pixel to pixel."""
    shape = (size[1] // 8 + 1, size[0] // 8 + 1, 4)
    spots = Image.fromarray(np.random.default_rng(0).integers(0, 256, shape, np.uint8), "RGBA")
    image = spots.resize(size, Image.Resampling.BILINEAR)
    return image if mode == "RGBA" else image.convert("RGB").convert(mode) if mode in "1LP" else image.convert(mode)


def write(path: Path, image: Image.Image, orientation: int = 1, transparency: object = None) -> Path:
    """Write a picture in the format that its name says, with an EXIF orientation."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {} if transparency is None else {"transparency": transparency}
    image.save(path, None, exif=exif, **options)
    return path


def write_png(path: Path, width: int, height: int, rows: int) -> Path:
    """Write a black one-bit PNG whose header says a size, with so many rows in a few bytes each."""
    pack = zlib.compressobj(9)
    row = bytes(1 + -(-width // 8))
    data = b"".join([pack.compress(row) for _ in range(rows)]) + pack.flush()
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", data), (b"IEND", b"")]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(*chunk) for chunk in chunks))
    return path


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
