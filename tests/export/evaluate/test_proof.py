"""What a checkpoint's reading is proven against: a mistake in edgeglm's own reading is caught, whichever it is."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from safetensors.torch import load_file, save_file

from edgeglm import manifest
from edgeglm.errors import AccuracyError, DamagedFileError, UnsupportedError
from edgeglm.export.checkpoint import reader
from edgeglm.export.checkpoint.reader import Checkpoint
from edgeglm.export.evaluate.original.loading_proof import prove_pictures, prove_reading
from edgeglm.export.families.spec import Family
from edgeglm.export.model import Model
from tests.export.test_config_forms import FORMS
from tests.export.tiny import SHAPES, save


@pytest.mark.parametrize("name", SHAPES)
def test_a_right_reading_passes(name: str, tmp_path: Path) -> None:
    save(SHAPES[name], tmp_path)
    prove_reading(Checkpoint.open(tmp_path))


@pytest.mark.parametrize("name", FORMS)
def test_a_right_reading_of_other_forms_passes(name: str, tmp_path: Path) -> None:
    FORMS[name](tmp_path)
    prove_reading(Checkpoint.open(tmp_path))


def test_a_head_of_its_own_that_is_not_used_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    FORMS["head of its own"](tmp_path)
    monkeypatch.setattr(reader, "normalize", lambda config, _: dict(config))
    with pytest.raises(UnsupportedError, match="transformers reads it otherwise than edgeglm: the logits of its first"):
        prove_reading(Checkpoint.open(tmp_path))


def settings(**changed: object) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda config: config | changed


ROPE = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}
WRONG: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "epsilon": settings(rms_norm_eps=1e-2),
    "base": settings(rope_parameters=ROPE | {"rope_theta": 9000.0}),
    "fraction": settings(rope_parameters=ROPE | {"partial_rotary_factor": 0.25}),
    "scaling": settings(rope_parameters=ROPE | {"rope_type": "linear", "factor": 2.0}),
    "activation": settings(hidden_act="gelu"),
}


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
def test_a_setting_that_is_read_otherwise_is_caught(
    wrong: Callable[[dict[str, Any]], dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(SHAPES["glm4"], tmp_path)
    monkeypatch.setattr(reader, "normalize", lambda config, _: wrong(dict(config)))
    with pytest.raises(UnsupportedError, match="transformers reads it otherwise"):
        prove_reading(Checkpoint.open(tmp_path))


def swapped(model: Model) -> Model:
    """The last norm is another one."""
    return replace(model, decoder=replace(model.decoder, norm="model.layers.0.input_layernorm.weight"))


def one_layer(model: Model) -> Model:
    """Every layer is the first."""
    return replace(model, decoder=replace(model.decoder, blocks=model.decoder.blocks.replace("{layer}", "0")))


@pytest.mark.parametrize("change", [swapped, one_layer])
def test_a_weight_that_is_taken_for_another_is_caught(
    change: Callable[[Model], Model], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(SHAPES["glm4"], tmp_path)
    describe = Family.describe
    monkeypatch.setattr(Family, "describe", lambda *arguments: change(describe(*arguments)))
    with pytest.raises(UnsupportedError, match="transformers reads it otherwise"):
        prove_reading(Checkpoint.open(tmp_path))


def test_a_vision_tower_that_is_read_otherwise_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(SHAPES["glm4v"], tmp_path)
    describe = Family.describe

    def wrong(family: Family, config: Any, grid: tuple[int, int] | None) -> Model:  # noqa: ANN401
        model = describe(family, config, grid)
        if model.vision is None:
            return model
        return replace(model, vision=replace(model.vision, blocks=model.vision.blocks.replace("{layer}", "1")))

    monkeypatch.setattr(Family, "describe", wrong)
    with pytest.raises(UnsupportedError, match="transformers reads it otherwise"):
        prove_reading(Checkpoint.open(tmp_path))


def test_a_weight_that_transformers_misses_is_named(tmp_path: Path) -> None:
    save(SHAPES["glm"], tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["lm_head.weight"]
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(DamagedFileError, match=r"finds no weight for lm_head\.weight"):
        prove_reading(Checkpoint.open(tmp_path))


MEAN, STD = (0.5, 0.4, 0.3), (0.5, 0.25, 0.125)
VISION = manifest.Vision((8, 10), 14, 2, 2, MEAN, STD, 252, 250, 253)


@pytest.mark.parametrize(
    ("settings", "right"),
    [
        ({"image_mean": [*MEAN], "image_std": [*STD]}, True),
        ({"image_mean": [*MEAN]}, False),
        ({"image_mean": [*MEAN], "image_std": [*STD], "resample": 0}, False),
        ({"image_mean": [*MEAN], "image_std": [*STD], "rescale_factor": 0.01}, False),
    ],
)
def test_pixels_that_become_other_numbers_are_caught(settings: Mapping[str, Any], right: bool, tmp_path: Path) -> None:
    save(SHAPES["glm4v"], tmp_path)
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": settings}))
    checkpoint = Checkpoint.open(tmp_path)
    if right:
        prove_pictures(tmp_path, VISION, checkpoint)
        return
    with pytest.raises(AccuracyError, match="pixels become other numbers than by the image processor of"):
        prove_pictures(tmp_path, VISION, checkpoint)
