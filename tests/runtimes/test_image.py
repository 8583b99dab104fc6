"""The device's picture preprocessing equals transformers' image processor."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import numpy as np
from PIL import Image
from transformers.models.glm4v.image_processing_pil_glm4v import Glm4vImageProcessorPil

from edgeglm.export.describe import IMAGE_MEAN, IMAGE_STD
from edgeglm.export.locate import DEMO
from edgeglm.manifest import Vision
from edgeglm.runtimes.image import to_patches

VISION = Vision((24, 12), 14, 2, 2, IMAGE_MEAN, IMAGE_STD, 1014, 1018, 1015)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P"])
@pytest.mark.parametrize("size", [(448, 896), (168, 336), (97, 194)])
def test_patches_equal_transformers(size: tuple[int, int], mode: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (size[1] // 8 + 1, size[0] // 8 + 1, 3), np.uint8)
    image = Image.fromarray(noise).resize(size, Image.Resampling.BILINEAR).convert(mode)
    processor = Glm4vImageProcessorPil.from_pretrained(DEMO)
    want = processor(images=[image], return_tensors="np")
    assert want["image_grid_thw"].tolist() == [[1, 24, 12]]
    assert np.abs(to_patches(image, VISION) - want["pixel_values"]).max() <= 1e-5
