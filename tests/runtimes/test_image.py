"""The device's picture preprocessing equals transformers' image processor, whatever file the picture comes from."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps
from transformers.image_processing_backends import PilBackend
from transformers.image_utils import SizeDict
from transformers.models.glm4v.image_processing_pil_glm4v import Glm4vImageProcessorPil

from edgeglm.export.checkpoint.locate import DEMO
from edgeglm.export.checkpoint.processor import MEAN, STD
from edgeglm.export.samples.shipped import DATA
from edgeglm.manifest import Vision
from edgeglm.runtimes.inputs import image as module
from edgeglm.runtimes.inputs.image import open_picture, to_patches
from tests.runtimes.pictures import noise, write

VISION = Vision((24, 12), 14, 2, 2, MEAN, STD, 1014, 1018, 1015)
ODD = (333, 77)
KINDS = [
    *[("webp", mode) for mode in ("RGB", "RGBA", "L")],
    *[("png", mode) for mode in ("RGB", "RGBA", "L", "LA", "P", "1")],
    *[("jpg", mode) for mode in ("RGB", "L", "CMYK")],
]


@pytest.fixture(scope="module")
def processor() -> Glm4vImageProcessorPil:
    return Glm4vImageProcessorPil.from_pretrained(DEMO)


def at_the_grid(processor: Glm4vImageProcessorPil, image: Image.Image) -> NDArray[np.float32]:
    """What the processor makes of a picture, at the size that the bundle is made for instead of one of its choice."""
    rows, columns = VISION.grid
    size = SizeDict(height=rows * VISION.patch_size, width=columns * VISION.patch_size)
    array = processor.process_image(image, do_convert_rgb=True)
    resized = PilBackend.resize(processor, array, size, resample=processor.resample)
    done = processor(images=[resized], do_resize=False, input_data_format="channels_first", return_tensors="np")
    assert done["image_grid_thw"].tolist() == [[1, rows, columns]]
    patches: NDArray[np.float32] = done["pixel_values"]
    return patches


def check(processor: Glm4vImageProcessorPil, path: Path) -> None:
    with Image.open(path) as image:
        want = at_the_grid(processor, ImageOps.exif_transpose(image))
    assert np.abs(to_patches(open_picture(path), VISION) - want).max() <= 1e-5


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P"])
@pytest.mark.parametrize("size", [(448, 896), (168, 336), (97, 194)])
def test_patches_equal_the_processors_at_a_size_of_its_choice(
    processor: Glm4vImageProcessorPil, size: tuple[int, int], mode: str
) -> None:
    image = noise(size, mode)
    want = processor(images=[image], return_tensors="np")
    assert want["image_grid_thw"].tolist() == [[1, 24, 12]]
    assert np.abs(to_patches(image, VISION) - want["pixel_values"]).max() <= 1e-5


@pytest.mark.parametrize("screen", range(3))
def test_patches_of_the_demos_screens_equal(processor: Glm4vImageProcessorPil, screen: int) -> None:
    check(processor, DATA / "evaluation" / f"{screen:04d}.webp")


@pytest.mark.parametrize("size", [ODD, (77, 333), (360, 800), (1, 1), (5, 300)])
@pytest.mark.parametrize(("kind", "mode"), KINDS)
def test_patches_of_a_file_equal(
    processor: Glm4vImageProcessorPil, tmp_path: Path, kind: str, mode: str, size: tuple[int, int]
) -> None:
    check(processor, write(tmp_path / f"p.{kind}", noise(size, mode)))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["webp", "png", "jpg"])
def test_patches_of_a_rotated_picture_equal(
    processor: Glm4vImageProcessorPil, tmp_path: Path, kind: str, orientation: int
) -> None:
    path = write(tmp_path / f"p.{kind}", noise(ODD), orientation)
    assert open_picture(path).size == (ODD if orientation < 5 else ODD[::-1])
    check(processor, path)


@pytest.mark.parametrize(("mode", "transparency"), [("P", 3), ("P", bytes(range(256))), ("RGB", (0, 0, 0)), ("L", 7)])
def test_patches_of_a_picture_with_a_transparent_colour_equal(
    processor: Glm4vImageProcessorPil, tmp_path: Path, mode: str, transparency: object
) -> None:
    image = noise(ODD, mode)
    image.paste(0, (0, 0, 50, 50))
    path = write(tmp_path / "p.png", image, transparency=transparency)
    assert "transparency" in open_picture(path).info
    check(processor, path)


def test_of_16_bits_of_grey_the_upper_8_count(tmp_path: Path) -> None:
    grey = np.random.default_rng(0).integers(0, 1 << 16, (77, 33), np.uint16)
    path = write(tmp_path / "p.png", Image.fromarray(grey))
    assert open_picture(path).mode == "I;16"
    coarse = Image.fromarray((grey >> 8).astype(np.uint8))
    assert np.array_equal(to_patches(open_picture(path), VISION), to_patches(coarse, VISION))


@pytest.mark.parametrize("kind", ["webp", "png"])
def test_the_first_frame_of_an_animation_counts(tmp_path: Path, kind: str) -> None:
    first, second = noise(ODD), Image.new("RGB", ODD, "red")
    first.save(tmp_path / f"p.{kind}", save_all=True, append_images=[second], lossless=True)
    assert np.array_equal(np.asarray(open_picture(tmp_path / f"p.{kind}").convert("RGB")), np.asarray(first))


def test_a_large_jpeg_is_decoded_smaller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "p.jpg", noise((401, 301)), 6)
    monkeypatch.setattr(module, "MAX_PIXELS", 401 * 301)
    assert open_picture(path).size == (301, 401)
    monkeypatch.setattr(module, "MAX_PIXELS", 401 * 301 - 1)
    assert open_picture(path).size == (151, 201)
    upright = Image.open(path).transpose(Image.Transpose.ROTATE_270)
    difference = to_patches(upright, VISION) - to_patches(open_picture(path), VISION)
    assert np.abs(difference).mean() < 0.2  # 0.1; of a picture that is not turned 1.2
