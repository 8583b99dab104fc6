"""The image processor's settings: pictures become what transformers makes of them, from the file that it takes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import numpy as np
from PIL import Image
from transformers.models.glm4v.image_processing_pil_glm4v import Glm4vImageProcessorPil

from edgeglm import manifest
from edgeglm.errors import DamagedFileError, EdgeglmError, UnsupportedError
from edgeglm.export.checkpoint.processor import SILENT, Settings, read_processor
from edgeglm.export.checkpoint.reader import Checkpoint
from edgeglm.export.model import Vision
from edgeglm.export.write.describe import describe_vision
from edgeglm.runtimes.inputs.image import to_patches
from tests.export.checkpoints import HEADER, make, pack

# A picture that the processor resizes to 8 x 12 patches.
SIZE, GRID = (150, 110), (8, 10)
SETTINGS = {"size": {"shortest_edge": 12544, "longest_edge": 9633792}}
VARIED: dict[str, dict[str, Any]] = {
    "as they are": {},
    "mean and deviation": {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.5, 0.25, 0.125]},
    "one number": {"image_mean": 0.5, "image_std": 0.25},
    "null": {"image_mean": None, "do_normalize": None, "do_rescale": None},
    "no normalizing": {"do_normalize": False},
    "no rescaling": {"do_rescale": False, "image_mean": [127.0] * 3, "image_std": [64.0] * 3},
    "another factor": {"rescale_factor": 0.01},
    "neither": {"do_rescale": False, "do_normalize": False},
    "bilinear": {"resample": 2},
    "lanczos": {"resample": 1},
}


def opened(folder: Path, **files: object) -> Checkpoint:
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        text = content if isinstance(content, str) else json.dumps(content)
        (folder / f"{name}_config.json").write_text(text)
    return Checkpoint.open(make(folder, pack(HEADER)))


def described(checkpoint: Checkpoint) -> manifest.Vision:
    vision = Vision(1, 48, 3, 64, "b.{layer}.", "v.", (), 151343, 14, 2, 2, 3, GRID, "table", 151339, 151340)
    return describe_vision(vision, read_processor(checkpoint, {})[0])


@pytest.mark.parametrize("settings", VARIED.values(), ids=VARIED)
@pytest.mark.parametrize("nested", [False, True], ids=["preprocessor_config", "processor_config"])
def test_pictures_are_prepared_as_in_transformers(nested: bool, settings: dict[str, Any], tmp_path: Path) -> None:
    content = SETTINGS | settings
    if nested:
        files: dict[str, object] = {
            "processor": {"image_processor": content},
            "preprocessor": {"image_mean": [9, 9, 9]},
        }
    else:
        files = {"preprocessor": content, "processor": {"processor_class": "Glm4vProcessor"}}
    checkpoint = opened(tmp_path, **files)
    image = Image.effect_noise((15, 11), 90).convert("RGB").resize(SIZE)
    theirs = Glm4vImageProcessorPil.from_pretrained(tmp_path)(images=[image], return_tensors="np")
    assert theirs["image_grid_thw"].tolist() == [[1, *GRID]]
    mine = to_patches(image, described(checkpoint))
    np.testing.assert_allclose(mine, theirs["pixel_values"], rtol=1e-5, atol=1e-5 * abs(mine).max())


def test_without_a_file_the_models_own_are_taken_and_said(tmp_path: Path) -> None:
    processor, (note,) = read_processor(opened(tmp_path), {})
    theirs = Glm4vImageProcessorPil
    assert [processor.mean, processor.std] == [tuple(theirs.image_mean), tuple(theirs.image_std)]
    assert [processor.smallest, processor.largest] == [*theirs.size.values()]
    assert note.endswith("has no preprocessor_config.json: images are prepared as GLM-4.1V's own are")


def test_every_setting_is_honoured_named_or_known_to_say_nothing(tmp_path: Path) -> None:
    """A setting that transformers adds makes this fail, until somebody decides what it is."""
    assert {*Glm4vImageProcessorPil.valid_kwargs.__annotations__} <= {*Settings.__struct_fields__, *SILENT}
    assert not {*Settings.__struct_fields__} & {*SILENT}
    content = {"max_pixels": 5_000_000, "frobnicate": 1, "image_processor_type": "Qwen2VLImageProcessor"}
    content |= {"do_resize": False, "do_convert_rgb": False}
    notes = " ".join(read_processor(opened(tmp_path, preprocessor=content), {})[1])
    for word in ("frobnicate, max_pixels", "'Qwen2VLImageProcessor'", "do_resize is false", "do_convert_rgb is false"):
        assert word in notes
    assert read_processor(opened(tmp_path, preprocessor=dict.fromkeys(SILENT)), {})[1] == ()


@pytest.mark.parametrize(
    ("content", "error"),
    [
        ({"image_mean": [0.1, 0.2]}, DamagedFileError),
        ({"image_std": [0, 0.1, 0.1]}, DamagedFileError),
        ({"image_std": -1}, DamagedFileError),
        ({"image_mean": "abc"}, DamagedFileError),
        ({"image_mean": [float("nan")] * 3}, DamagedFileError),
        ({"image_mean": [1e300] * 3}, DamagedFileError),
        ({"do_normalize": "yes"}, DamagedFileError),
        ({"image_mean": None}, DamagedFileError),
        ({"rescale_factor": None}, DamagedFileError),
        ({"rescale_factor": 0}, DamagedFileError),
        ({"resample": "bicubic"}, DamagedFileError),
        ({"resample": None}, DamagedFileError),
        ({"resample": 6}, DamagedFileError),
        ({"size": 448}, DamagedFileError),
        ({"size": {"longest_edge": 448}}, DamagedFileError),
        ({"size": {"shortest_edge": 1, "longest_edge": -3}}, DamagedFileError),
        ({"patch_size": 16}, UnsupportedError),
        ({"merge_size": 1}, UnsupportedError),
        ("[]", DamagedFileError),
        ("{", DamagedFileError),
    ],
    ids=str,
)
def test_odd_settings_are_one_line(content: object, error: type[EdgeglmError], tmp_path: Path) -> None:
    for name in ("preprocessor", "processor"):
        nested = {"image_processor": content} if name == "processor" and isinstance(content, dict) else content
        with pytest.raises(error, match=rf"/{name}_config\.json: ") as caught:
            read_processor(opened(tmp_path / name, **{name: nested}), {})
        assert str(caught.value).isprintable()
