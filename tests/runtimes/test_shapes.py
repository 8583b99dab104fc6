"""A bundle with several shapes of picture: one file of weights, the nearest shape for each picture, as transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from PIL import Image
from transformers.models.glm4v.image_processing_pil_glm4v import Glm4vImageProcessorPil

from edgeglm.bundle import load_bundle
from edgeglm.devices.loader import load_profile
from edgeglm.errors import UnsupportedError
from edgeglm.export.checkpoint.locate import DEMO, DEMO_NAME
from edgeglm.export.pipeline.export import export
from edgeglm.export.predict.forecast import predict
from edgeglm.export.prepare.preparation import open_export, prepare
from edgeglm.export.prepare.types import Request
from edgeglm.export.samples.shipped import DEMO_DATA
from edgeglm.runtimes.core.runner import Runner
from edgeglm.runtimes.inputs.image import nearest_shape
from edgeglm.runtimes.text.messages import Message
from tests.runtimes.pictures import noise, write

SIZES = ((112, 224), (224, 112), (168, 168))  # in pixels; the demo's patches have 14, and 2 x 2 of them are a token


@pytest.fixture(scope="module")
def shaped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo in fp32 for three shapes of picture."""
    folder: Path = tmp_path_factory.mktemp("shaped") / "bundle"
    request = Request(DEMO, DEMO_NAME, load_profile("cpu"), "fp32", image_sizes=SIZES, shipped=DEMO_DATA)
    prepared = prepare(open_export(request))
    made, _ = export(prepared, folder, predict(prepared), lambda _: None)
    assert made.bundle_bytes - made.files["report.html"].bytes == prepared.bundle_bytes
    return folder


def test_every_shape_is_a_proven_graph_over_the_same_weights(shaped: Path) -> None:
    vision = load_bundle(shaped).module("vision")
    assert vision is not None
    assert [(shape.grid, shape.file) for shape in vision.shapes] == [
        ((8, 16), "vision/8x16.onnx"),
        ((12, 12), "vision/12x12.onnx"),
    ]
    assert all(shape.max_relative_error is not None and shape.max_relative_error < 1e-5 for shape in vision.shapes)
    assert sorted(path.name for path in (shaped / "vision").iterdir()) == [
        "12x12.onnx", "8x16.onnx", "model.onnx", "weights.bin"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("size", "grid"),
    [((448, 896), (16, 8)), ((896, 448), (8, 16)), ((500, 480), (12, 12)), ((1000, 450), (8, 16)), ((1, 999), (16, 8))],
)
def test_a_picture_gets_the_nearest_shape(shaped: Path, size: tuple[int, int], grid: tuple[int, int]) -> None:
    assert nearest_shape(*size, load_bundle(shaped).shapes).grid == grid


def test_pictures_of_all_shapes_in_one_prompt_are_answered_as_transformers_does(shaped: Path, tmp_path: Path) -> None:
    files = [write(tmp_path / f"{index}.png", noise(size)) for index, size in enumerate(SIZES)]
    turned = write(tmp_path / "turned.png", noise(SIZES[0]), orientation=6)  # wide, as EXIF turns it
    messages = _ask([*files, turned])
    with Runner(shaped) as runner:
        answer = runner.answer(messages, max_new_tokens=12)
        loads = [module.name for module in answer.modules].count("vision")
    text, count = _reference([Image.open(file) for file in files] + [noise(SIZES[0]).rotate(-90, expand=True)])
    assert (answer.text, answer.prompt_tokens) == (text, count)
    assert loads == len(SIZES)
    assert not answer.notes


def test_a_module_that_is_compiled_takes_one_shape() -> None:
    request = Request(DEMO, DEMO_NAME, load_profile("qcs6490"), image_sizes=SIZES)
    with pytest.raises(UnsupportedError, match="takes one image size"):
        open_export(request)


def _ask(pictures: list[Path]) -> list[Message]:
    images = [{"type": "image", "path": str(path)} for path in pictures]
    return [{"role": "user", "content": [*images, {"type": "text", "text": "Select OK"}]}]


def _reference(images: list[Image.Image]) -> tuple[str, int]:
    """What transformers answers greedily, and how many tokens it was asked."""
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(DEMO)
    model: Any = transformers.Glm4vForConditionalGeneration.from_pretrained(DEMO, dtype=torch.float32).eval()
    processor = Glm4vImageProcessorPil.from_pretrained(DEMO, size={"shortest_edge": 1, "longest_edge": 1 << 20})
    pixels = processor(images=[image.convert("RGB") for image in images], return_tensors="pt")
    content = [*({"type": "image"} for _ in images), {"type": "text", "text": "Select OK"}]
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
    )
    for count in (pixels["image_grid_thw"].prod(-1) // 4).tolist():
        text = text.replace("<|image|>", "<|placeholder|>" * count, 1)
    inputs = tokenizer(text.replace("<|placeholder|>", "<|image|>"), return_tensors="pt", add_special_tokens=False)
    inputs.pop("token_type_ids", None)
    is_image = inputs["input_ids"] == tokenizer.convert_tokens_to_ids("<|image|>")
    with torch.inference_mode():
        out = model.generate(**inputs, **pixels, mm_token_type_ids=is_image.long(), max_new_tokens=12, do_sample=False)
    length = inputs["input_ids"].shape[1]
    return tokenizer.decode(out[0, length:], skip_special_tokens=True), length
