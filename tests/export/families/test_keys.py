"""Keys of a config.json: what transformers' classes have is honoured or silent for a reason, the rest is named."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import torch
from safetensors.torch import load_file, save_file
from transformers import GenerationConfig, Glm4Config, Glm4vConfig, GlmConfig, PreTrainedConfig
from transformers.models.glm4v.configuration_glm4v import Glm4vTextConfig, Glm4vVisionConfig

from edgeglm.devices.loader import load_profile
from edgeglm.export.checkpoint.generation import KNOWN
from edgeglm.export.checkpoint.generation import SILENT as SILENT_GENERATION
from edgeglm.export.families.glm4v import GLM4V
from edgeglm.export.families.keys import COMPUTED, SILENT, unknown_keys
from edgeglm.export.prepare.preparation import open_export, prepare
from edgeglm.export.prepare.types import Request
from tests.export.tiny import SHAPES, save


@pytest.mark.parametrize(
    ("config", "part"),
    [
        (GlmConfig, "text"),
        (Glm4Config, "text"),
        (Glm4vTextConfig, "text"),
        (Glm4vVisionConfig, "vision"),
        (Glm4vConfig, "model"),
    ],
)
def test_every_setting_of_transformers_is_decided_on(config: type[PreTrainedConfig], part: str) -> None:
    """A setting that a new transformers adds makes this fail, until somebody decides what it is."""
    (encoder,) = GLM4V.encoders
    honoured = {"vision": encoder.keys, "model": COMPUTED["model"] | encoder.more_keys | {encoder.config}}
    keys = honoured.get(part) or COMPUTED[part]
    assert {field.name for field in dataclasses.fields(config)} <= keys | {*SILENT}
    assert not keys & {*SILENT}


def test_settings_for_generating_are_none_of_the_models() -> None:
    theirs = GenerationConfig._get_default_generation_params()
    named = unknown_keys({"hidden_size": 64, **theirs}, KNOWN | SILENT_GENERATION)
    assert {*named} <= {"exponential_decay_length_penalty", "forced_bos_token_id", "forced_eos_token_id", "max_length"}


def test_what_nobody_honours_is_named_with_its_part() -> None:
    config: dict[str, Any] = {"model_type": "glm4v", "logit_scale": 2.0, "text_config": {"sliding_window": 4096}}
    config |= {"vision_config": {"depth": 2, "window_size": 112}}
    assert unknown_keys(config) == ["logit_scale", "text_config.sliding_window", "vision_config.window_size"]
    assert unknown_keys({"model_type": "glm", "layer_types": [], "embedding_multiplier": 2.0}) == [
        "embedding_multiplier",
        "layer_types",
    ]


def test_a_note_names_keys_and_weights_that_are_left_out(tmp_path: Path) -> None:
    save(SHAPES["glm-tied-one-head"], tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"final_logit_softcapping": 30.0, "temperature": 0.5}))
    weights = load_file(tmp_path / "model.safetensors")
    more = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4), "model.mtp.weight": torch.ones(2)}
    save_file(weights | more, tmp_path / "model.safetensors", {"format": "pt"})
    notes = prepare(open_export(Request(tmp_path, "tiny", load_profile("cpu"), "fp32"))).notes
    said = "config.json: transformers' class for the model does not know final_logit_softcapping, and neither does"
    assert [note for note in notes if note.startswith(said)]
    left = "the weight model.mtp.weight is no part of GlmForCausalLM, and left out as transformers does"
    assert [note for note in notes if "no part of" in note] == [left]
