"""Pictures of every format, damaged anywhere: read or refused in a line, within the pixels that are taken."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from pathlib import Path

from edgeglm.runtimes.inputs.image import open_picture
from tests.adversary.fuzzer import Fuzzer
from tests.runtimes.pictures import noise

FORMATS = ("webp", "png", "jpeg", "gif", "bmp", "tiff")


def seeds() -> list[bytes]:
    """One small picture of each format and of some modes."""
    pictures = []
    for kind in FORMATS:
        for mode in ("RGB", "L", "RGBA") if kind in ("webp", "png", "tiff") else ("RGB", "L"):
            buffer = io.BytesIO()
            noise((60, 44), mode).save(buffer, kind)
            pictures.append(buffer.getvalue())
    return pictures


def test_a_damaged_picture_is_read_or_refused(tmp_path: Path, fuzz: Callable[[str], Fuzzer]) -> None:
    fuzzer, pictures, file = fuzz("a picture mutated"), seeds(), tmp_path / "picture"
    for _ in fuzzer.attempts():
        data = bytearray(fuzzer.random.choice(pictures))
        for _ in range(fuzzer.random.choice((1, 1, 2, 8))):
            data[fuzzer.random.randrange(len(data))] = fuzzer.random.choice(
                (0, 1, 0x7F, 0xFF, fuzzer.random.randrange(256))
            )
        if fuzzer.random.random() < 0.2:
            del data[fuzzer.random.randrange(len(data)) :]
        file.write_bytes(data)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's on odd files
            fuzzer.call(bytes(data[:40]), lambda: open_picture(file, 64 << 20).load())
