"""Configs in the forms that people publish: each is computed as transformers computes it, or refused in a line."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

import numpy as np
import transformers
from safetensors.torch import load_file, save_file
from transformers import (
    Glm4ForCausalLM,
    Glm4vConfig,
    Glm4vForConditionalGeneration,
    GlmForCausalLM,
    PreTrainedModel,
)

from edgeglm.devices.loader import load_profile
from edgeglm.errors import UnsupportedError
from edgeglm.export.checkpoint.reader import Checkpoint
from edgeglm.export.evaluate.original.decoder import StreamedDecoder
from edgeglm.export.families.configs import normalize
from edgeglm.export.families.registry import FAMILIES
from edgeglm.export.families.rope import Positions, read_positions
from edgeglm.export.graph.assemble import build, stack_of
from edgeglm.export.predict.forecast import forecast
from edgeglm.export.prepare.preparation import open_export
from edgeglm.export.prepare.types import Request
from edgeglm.export.targets.litert.peak import export_peak
from edgeglm.export.trace.trace_request import TraceRequest
from edgeglm.export.trace.tracer import trace
from edgeglm.runtimes.engines.ort.options import open_session
from tests.export.test_parity import write
from tests.export.tiny import SHAPES, save

CONTEXT, LENGTH = 1024, 600  # beyond the 512 positions that the models were trained for


def edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    file = folder / "config.json"
    config = json.loads(file.read_text())
    change(config)
    file.write_text(json.dumps(config))


def head_of_its_own(folder: Path) -> PreTrainedModel:
    save(SHAPES["glm-tied-one-head"], folder)
    weights = load_file(folder / "model.safetensors")
    weights["lm_head.weight"] = torch.randn(weights["model.embed_tokens.weight"].shape)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return GlmForCausalLM.from_pretrained(folder)


def head_alone(folder: Path) -> PreTrainedModel:
    """The embedding is tied to a head that was saved in its place."""
    model = save(SHAPES["glm-tied-one-head"], folder)
    weights = load_file(folder / "model.safetensors")
    weights["lm_head.weight"] = weights.pop("model.embed_tokens.weight")
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return model


def rescaled(**rope: object) -> Callable[[Path], PreTrainedModel]:
    """The old form, as it is added to a config by hand."""

    def make(folder: Path) -> PreTrainedModel:
        save(SHAPES["glm4"], folder)

        def older(config: dict[str, Any]) -> None:
            config.pop("rope_parameters")
            config.update(rope_theta=10000.0, partial_rotary_factor=0.5, rope_scaling=rope)

        edit(folder, older)
        return Glm4ForCausalLM.from_pretrained(folder)

    return make


def flat(folder: Path) -> PreTrainedModel:
    """GLM-4.1V's first config, of transformers 4.53."""
    model = save(SHAPES["glm4v"], folder)

    def older(config: dict[str, Any]) -> None:
        text = config.pop("text_config")
        rope = text.pop("rope_parameters")
        text.pop("model_type")
        config.update(text, rope_theta=rope["rope_theta"], partial_rotary_factor=0.5, torch_dtype=config.pop("dtype"))
        config["rope_scaling"] = {"type": "default", "mrope_section": rope["mrope_section"]}

    edit(folder, older)
    return model


YARN = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512}
LLAMA = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
FORMS: dict[str, Callable[[Path], PreTrainedModel]] = {
    "head of its own": head_of_its_own,
    "head alone": head_alone,
    "flat": flat,
    "yarn": rescaled(**YARN),
    "yarn with mscale": rescaled(**YARN, mscale=0.7, mscale_all_dim=0.3, beta_fast=16),
    "linear": rescaled(type="linear", factor=2.0),
    "llama3": rescaled(**LLAMA, original_max_position_embeddings=256),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, PreTrainedModel]]:
    """Every form, with transformers' own model of it."""
    folders = {name: tmp_path_factory.mktemp("form") for name in FORMS}
    return {name: (folder, FORMS[name](folder).eval()) for name, folder in folders.items()}


@pytest.mark.parametrize("name", FORMS)
def test_the_reference_reads_it_as_transformers(name: str, made: dict[str, tuple[Path, PreTrainedModel]]) -> None:
    folder, model = made[name]
    tokens = np.random.default_rng(3).integers(0, 250, (1, LENGTH))
    streamed = StreamedDecoder(Checkpoint.open(folder))
    with torch.inference_mode():
        logits = model(input_ids=torch.from_numpy(tokens)).logits[:, -9:]
        head = torch.from_numpy(streamed.source.rows(streamed.decoder.head))
        mine = streamed.hidden(tokens)[:, -9:] @ head.T
    np.testing.assert_allclose(mine.numpy(), logits.numpy(), atol=1e-4)


def test_the_graphs_compute_it_as_transformers(made: dict[str, tuple[Path, PreTrainedModel]], tmp_path: Path) -> None:
    opened = {name: Checkpoint.open(folder) for name, (folder, _) in made.items()}
    requests = [TraceRequest(checkpoint.config_json, "portable", CONTEXT) for checkpoint in opened.values()]
    tokens = torch.from_numpy(np.random.default_rng(4).integers(0, 250, (1, LENGTH)))
    for (name, checkpoint), traced in zip(opened.items(), trace(requests), strict=True):
        stack, model = stack_of("decoder", traced), made[name][1]
        session = open_session(write(build(stack, "portable"), "portable", checkpoint, tmp_path / f"{name}.onnx"), 1)
        axes = 3 if traced.model.decoder.mrope_section else 1
        inputs = {value.name: value.shape for value in session.get_inputs()}
        with torch.inference_mode():
            want = model(input_ids=tokens).logits[:, -1].numpy()
            hidden = model.get_input_embeddings()(tokens).numpy()
        feed = {
            "hidden": hidden,
            "position_ids": np.tile(np.arange(LENGTH), (axes, 1, 1)),
            "mask": np.triu(np.full((1, 1, LENGTH, LENGTH), -1e4, np.float32), 1),
        }
        state = {
            key: np.zeros((1, shape[1], 0, shape[3]), np.float32) for key, shape in inputs.items() if "past" in key
        }
        got = session.run(["logits"], {key: (feed | state)[key] for key in inputs})[0][0]
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4, err_msg=name)


@pytest.mark.parametrize(
    ("rope", "positions"),
    [
        ({}, Positions(512)),
        (YARN, Positions(2048)),
        ({"type": "yarn", "factor": 4.0}, Positions(2048)),
        ({"rope_type": "yarn", "factor": 4, "original_max_position_embeddings": 128}, Positions(512)),
        ({"type": "linear", "factor": 2.5}, Positions(1280)),
        ({"type": "dynamic", "factor": 2.0}, Positions(512, "dynamic")),
        ({"rope_type": "longrope", "original_max_position_embeddings": 256}, Positions(256, "longrope")),
    ],
    ids=str,
)
def test_the_context_follows_the_rope_scaling(rope: dict[str, Any], positions: Positions) -> None:
    assert read_positions({"max_position_embeddings": 512, "rope_scaling": rope}) == positions
    assert read_positions({"max_position_embeddings": 512, "rope_parameters": rope}) == positions


@pytest.mark.parametrize(
    "rope", [{"type": "nope"}, {"type": "yarn", "factor": "4"}, [4.0], {"type": ["yarn"]}], ids=str
)
def test_an_odd_rope_scaling_is_refused(rope: object) -> None:
    with pytest.raises(UnsupportedError):
        read_positions({"max_position_embeddings": 512, "rope_scaling": rope})


def test_a_config_in_todays_form_stays_as_it_is() -> None:
    config = {"model_type": "glm4v", "text_config": {"hidden_size": 64}, "tie_word_embeddings": True}
    assert normalize(config, ["model.embed_tokens.weight"]) == config


def save_usual(folder: Path) -> None:
    """A model most of whose sizes are those that transformers takes where a config says nothing."""
    rope = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5, "mrope_section": [2, 3, 3]}
    text = {"vocab_size": 256, "hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "pad_token_id": 0}
    vision = {"depth": 1, "hidden_size": 48, "out_hidden_size": 64, "intermediate_size": 72}
    config = Glm4vConfig(
        text_config=text | {"rope_parameters": rope}, vision_config=vision, image_token_id=250, image_start_token_id=252
    )
    Glm4vForConditionalGeneration(config).save_pretrained(folder)


def drop_usual(config: dict[str, Any]) -> None:
    """Leave out whatever is transformers' default, as older versions of it wrote files."""
    usual = Glm4vConfig().to_dict()
    for part, values in (("text_config", usual["text_config"]), ("vision_config", usual["vision_config"])):
        config[part] = {key: value for key, value in config[part].items() if values.get(key) != value}


def test_a_config_without_what_is_usual_is_planned_as_the_whole(tmp_path: Path) -> None:
    def plan() -> tuple[object, int]:
        request = Request(tmp_path, "usual", load_profile("cpu"), image_sizes=((112, 112),))
        tflite = replace(request, profile=load_profile("qcs6490"), format="vision=tflite")
        return forecast(request), export_peak(open_export(tflite))

    save_usual(tmp_path)
    whole = plan()
    edit(tmp_path, drop_usual)
    config = json.loads((tmp_path / "config.json").read_text())
    assert not {"intermediate_size", "num_key_value_heads", "max_position_embeddings"} & config["text_config"].keys()
    assert not {"num_heads", "image_size", "patch_size"} & config["vision_config"].keys()
    assert plan() == whole


@pytest.mark.parametrize("architecture", FAMILIES)
def test_usual_positions_are_those_of_transformers(architecture: str) -> None:
    text = getattr(transformers, architecture).config_class().get_text_config()
    assert read_positions({}, usual=FAMILIES[architecture].decoder.positions).most == text.max_position_embeddings
