"""The size of a picture: what the checkpoint's processor would give a phone's screen, and when a note says so."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("transformers")

import onnx_ir as ir
from transformers.models.glm4v.image_processing_pil_glm4v import smart_resize

from edgeglm.export.checkpoint.processor import ImageProcessor
from edgeglm.export.choose.picture import choose_picture, processor_size
from edgeglm.export.model import Choice, Part, Stored
from edgeglm.export.predict import peaks as plan

GLM41V = (12544, 9633792)


def processor(smallest: int, largest: int) -> ImageProcessor:
    return ImageProcessor((0.5, 0.5, 0.5), (0.5, 0.5, 0.5), 3, smallest, largest)


@pytest.mark.parametrize("size", [(1080, 2400), (1440, 3200), (2400, 1080), (720, 1280), (56, 84), (300, 300)])
@pytest.mark.parametrize("pixels", [GLM41V, (12544, 2 * 112 * 224), (2_000_000, 28 * 28 * 15000)])
def test_the_size_is_that_of_transformers(size: tuple[int, int], pixels: tuple[int, int]) -> None:
    height, width = smart_resize(2, size[1], size[0], 2, 28, *pixels)
    assert processor_size(size, processor(*pixels), 28, 2) == (width, height)


def test_a_picture_of_far_fewer_tokens_is_said_with_both_counts() -> None:
    note = choose_picture({}, processor(*GLM41V), None, None).note
    assert note is not None
    assert "is 644x1260 here and takes 1035 tokens; the checkpoint's own processor gives a screen of 1080x2400" in note
    assert "1080x2400 3354: --image-size 1092x2408 keeps them" in note


@pytest.mark.parametrize(
    ("pixels", "asked"), [((12544, 2 * 112 * 224), None), (GLM41V, (644, 1260)), ((12544, 2 * 1100 * 28 * 28), None)]
)
def test_a_picture_as_large_as_the_processors_or_as_asked_is_not(
    pixels: tuple[int, int], asked: tuple[int, int] | None
) -> None:
    assert choose_picture({}, processor(*pixels), None, asked).note is None


def test_the_prediction_counts_patches_and_pixels_of_the_picture() -> None:
    """The screen of 1080x2400 in a small tower of 96 channels: measured, 316 MiB with 66 of them before it."""
    tokens, choice = 78 * 172, Choice("vision", "int8", "cpu", "ort", "ort")
    stored = Stored(("x",), 1, 8 << 20, None, (Part("weight", ir.DataType.INT8, (1, 8 << 20), 0),), ("x",))
    size = plan.ModuleSize(
        choice, [stored], 8 << 20, 1.03, tokens, 96 + 2 * 128, pixels=tokens * 196, inputs=tokens * 1176 * 4
    )
    decoder: Any = type(
        "D", (), {"layers": 2, "hidden": 128, "heads": 4, "kv_heads": 2, "head_dim": 32, "vocabulary": 1024}
    )
    assert 316 << 20 < plan.device_peak([size], decoder, 1024) < 350 << 20
