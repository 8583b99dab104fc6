"""What family files say is what transformers has, and what follows from it."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from torch import nn

from edgeglm.export.families.glm4 import GLM4
from edgeglm.export.families.glm4v import GLM4V
from edgeglm.export.families.image_tower import small_grid
from edgeglm.export.families.registry import FAMILIES, encoder_specs, image_config, image_key, module_of
from edgeglm.export.families.spec import Family
from edgeglm.export.families.text_family import describe_decoder
from edgeglm.export.trace.decoder_parts import DecoderBack
from edgeglm.roles import ENCODERS

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_classes_of_a_spec_are_transformers_own(family: Family) -> None:
    modeling = importlib.import_module(family.modeling)
    assert issubclass(getattr(modeling, family.decoder.block), nn.Module)
    assert issubclass(getattr(modeling, family.decoder.rotary), nn.Module)
    assert hasattr(modeling, "apply_rotary_pos_emb")  # which the dialects replace
    for encoder in family.encoders:
        tower = importlib.import_module(encoder.tower)
        assert {"build", "parts", "ask"} <= set(vars(tower))


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_every_weight_of_transformers_class_is_in_the_module_that_is_said(family: Family) -> None:
    with torch.device("meta"):
        model = getattr(transformers, family.architecture)(getattr(transformers, family.architecture).config_class())
    names = {family.stored_name(name) for name in model.state_dict()}
    modules = {module_of(name) for name in names}
    assert modules == {"embedding", "decoder", *(encoder.name for encoder in family.encoders)}
    for module in modules:
        assert family.first_weight(module) in {name if module != "embedding" else name[-19:] for name in names}


def test_a_family_says_how_heads_are_rotated_and_what_a_head_is_called() -> None:
    config = transformers.Glm4Config()
    halves = replace(GLM4, decoder=replace(GLM4.decoder, style="halves", head="other.weight"))
    decoder = halves.describe(config, None).decoder
    assert (decoder.style, decoder.head) == ("halves", "other.weight")
    assert replace(decoder, style="pairs", head="lm_head.weight") == describe_decoder(config, "model", tied=False)


def test_a_picture_takes_as_many_tokens_as_merged_patches() -> None:
    config = transformers.Glm4vConfig(text_config={"rope_parameters": {"rope_type": "default", "mrope_section": [64]}})
    vision = GLM4V.describe(config, (24, 32)).vision
    assert vision is not None
    assert (vision.tokens, vision.token) == (12 * 16, 151343)
    assert small_grid(vision) == (4, 6)
    assert GLM4V.describe(config, None).encoders == {}


def test_only_the_last_token_goes_through_the_head() -> None:
    hidden = torch.randn(1, 4, 8)
    head = nn.Linear(8, 3, bias=False)
    assert torch.equal(DecoderBack(nn.Identity(), head)(hidden), head(hidden[:, 3:]))


@pytest.mark.parametrize("read", [lambda settings: settings, lambda settings: SimpleNamespace(**settings)])
def test_the_image_encoders_settings_are_found_by_the_key_of_its_family(read: Callable[[dict[str, Any]], Any]) -> None:
    (key,) = {encoder.config for encoder in encoder_specs() if ENCODERS[encoder.name] == "image"}
    sees, reads = {key: {"depth": 2}, "text_config": {}}, {key: None, "audio_config": {"depth": 2}}
    assert (image_key(read(sees)), image_config(read(sees))) == (key, {"depth": 2})
    assert (image_key(read(reads)), image_config(read(reads))) == (None, None)


def test_the_key_of_an_encoders_settings_stands_in_its_familys_file_alone() -> None:
    """The demo's own model is built by transformers, whose class takes it by name."""
    keys = {encoder.config for encoder in encoder_specs()}
    files = [path for folder in ("edgeglm", "export", "runtimes", "devices") for path in (ROOT / folder).rglob("*.py")]
    assert [
        str(path.relative_to(ROOT))
        for path in sorted(files)
        if not any(parent.is_symlink() for parent in path.parents)
        and keys.intersection(re.findall(r"\w+", path.read_text(encoding="utf-8")))
    ] == ["export/demo/model.py", "export/families/glm4v.py"]
