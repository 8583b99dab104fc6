"""Settings of config.json that make no sense are one line each, before anything is traced."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from edgeglm.devices.loader import load_profile
from edgeglm.errors import DamagedFileError, UnsupportedError
from edgeglm.export.families.building import build_config
from edgeglm.export.families.configs import normalize
from edgeglm.export.families.registry import FAMILIES
from edgeglm.export.prepare.preparation import open_export
from edgeglm.export.prepare.types import Request
from edgeglm.export.trace.trace_request import TraceRequest
from edgeglm.export.trace.tracer import trace
from tests.export.tiny import SHAPES, save

Config = dict[str, Any]
Change = Callable[[Config], object]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folders = {family: tmp_path_factory.mktemp("checkpoint") / family for family in ("glm", "glm4v")}
    for family, folder in folders.items():
        save(SHAPES[family], folder)
    return folders


def text(**values: object) -> Change:
    return lambda config: config.get("text_config", config).update(values)


def rope(**values: object) -> Change:
    return lambda config: config.get("text_config", config)["rope_parameters"].update(values)


def vision(**values: object) -> Change:
    return lambda config: config["vision_config"].update(values)


def changed(checkpoint: Path, folder: Path, change: Change) -> Path:
    """The checkpoint with another config."""
    config = json.loads((checkpoint / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").symlink_to(checkpoint / "model.safetensors")
    return folder


FACTOR = "which is not a number above 0 and at most 1"
SENSELESS: dict[str, tuple[str, Change, str]] = {
    "factor 0": ("glm", rope(partial_rotary_factor=0), f"partial_rotary_factor is 0, {FACTOR}"),
    "factor below 0": ("glm", rope(partial_rotary_factor=-0.5), f"partial_rotary_factor is -0.5, {FACTOR}"),
    "factor NaN": ("glm", rope(partial_rotary_factor=float("nan")), f"partial_rotary_factor is nan, {FACTOR}"),
    "factor infinite": ("glm", rope(partial_rotary_factor=float("inf")), f"partial_rotary_factor is inf, {FACTOR}"),
    "factor above 1": ("glm4v", rope(partial_rotary_factor=2.0), f"partial_rotary_factor is 2.0, {FACTOR}"),
    "factor a text": ("glm", rope(partial_rotary_factor="0.5"), f"partial_rotary_factor is '0.5', {FACTOR}"),
    "factor null": ("glm", rope(partial_rotary_factor=None), f"partial_rotary_factor is None, {FACTOR}"),
    "factor true": ("glm", rope(partial_rotary_factor=True), f"partial_rotary_factor is True, {FACTOR}"),
    "factor of an older config": ("glm", text(partial_rotary_factor=0), f"partial_rotary_factor is 0, {FACTOR}"),
    "base 0": ("glm", rope(rope_theta=0), "rope_theta is 0, which is not a number above 0"),
    "base below 0": ("glm4v", rope(rope_theta=-1e4), "rope_theta is -10000.0, which is not a number above 0"),
    "base of a scaling": ("glm", text(rope_scaling={"rope_theta": 0.0}), "rope_theta is 0.0, which is not a number"),
    "epsilon below 0": ("glm", text(rms_norm_eps=-1e-5), "rms_norm_eps is -1e-05, which is not a number from 0 to 1"),
    "epsilon huge": ("glm4v", text(rms_norm_eps=1e30), "rms_norm_eps is 1e\\+30, which is not a number from 0 to 1"),
    "epsilon a text": ("glm", text(rms_norm_eps="1e-5"), "rms_norm_eps is '1e-5', which is not a number from 0 to 1"),
    "a tower's epsilon": ("glm4v", vision(rms_norm_eps=-1), "rms_norm_eps is -1.0, which is not a number from 0 to 1"),
    "heads that do not divide": (
        "glm4v",
        text(num_key_value_heads=3),
        "num_key_value_heads is 3, which does not divide its num_attention_heads, 4",
    ),
    "no heads for keys": ("glm", text(num_key_value_heads=None), "num_key_value_heads is null, where transformers"),
    "no size of a head": ("glm", text(head_dim=None), "head_dim is null, where transformers needs a number"),
    "a tower without heads": (
        "glm4v",
        vision(num_heads=0),
        "num_heads is 0, which does not divide its hidden_size",
    ),
    "a tower of five heads": ("glm4v", vision(num_heads=5), "num_heads is 5, which does not divide its hidden_size"),
    "heads below 0": ("glm4v", vision(num_heads=-3), "num_heads is -3, which does not divide its hidden_size, 48"),
}


@pytest.mark.parametrize(("family", "change", "message"), SENSELESS.values(), ids=SENSELESS)
def test_a_senseless_value_is_one_line(
    family: str, change: Change, message: str, checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    folder = changed(checkpoints[family], tmp_path, change)
    with pytest.raises(DamagedFileError, match=rf"config\.json: its {message}.*; take an unchanged config"):
        open_export(Request(folder, "tiny", load_profile("cpu")))


@pytest.mark.parametrize("value", [0, -1, "512", 512.0, None], ids=str)
def test_odd_positions_are_named(value: object, checkpoints: dict[str, Path], tmp_path: Path) -> None:
    folder = changed(checkpoints["glm"], tmp_path, text(max_position_embeddings=value))
    with pytest.raises(UnsupportedError, match=rf"config\.json: has {value!r} as max_position_embeddings"):
        open_export(Request(folder, "tiny", load_profile("cpu")))


# What only transformers' config tells: whatever is left out has its defaults.
INSIDE: dict[str, tuple[str, Change, str]] = {
    "activation": ("glm", text(hidden_act="swoosh"), "hidden_act is 'swoosh', which transformers does not know"),
    "a tower's activation": ("glm4v", vision(hidden_act="swoosh"), "hidden_act is 'swoosh', which transformers does"),
    "no channels": ("glm", rope(partial_rotary_factor=0.03), "turns 0 of the 32 channels of a head"),
    "half a pair": ("glm", rope(partial_rotary_factor=0.1), "turns 3 of the 32 channels of a head, and it"),
    "sections": (
        "glm4v",
        rope(mrope_section=[2, 3, 4]),
        r"mrope_section is \[2, 3, 4\], which does not add up to the 8",
    ),
    "sections below 0": ("glm4v", rope(mrope_section=[-2, 5, 5]), r"mrope_section is \[-2, 5, 5\], which does not add"),
    "sections of text": ("glm4v", rope(mrope_section="abc"), "mrope_section is 'abc', which does not add up to"),
    "narrow heads": ("glm4v", vision(num_heads=16), "vision_config has 3 channels a head"),
}


@pytest.mark.parametrize(("family", "change", "message"), INSIDE.values(), ids=INSIDE)
def test_what_transformers_cannot_compute_is_one_line(
    family: str, change: Change, message: str, checkpoints: dict[str, Path]
) -> None:
    config = json.loads((checkpoints[family] / "config.json").read_text())
    change(config)
    with pytest.raises(UnsupportedError, match=rf"^config\.json: its .*{message}.*; take an unchanged config"):
        FAMILIES[config["architectures"][0]].describe(build_config(normalize(config, ())), (8, 12))


def test_the_tracing_process_names_the_file(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    config = json.loads((checkpoints["glm"] / "config.json").read_text()) | {"hidden_act": "swoosh"}
    with pytest.raises(UnsupportedError, match=rf"^{tmp_path}/config\.json: its hidden_act is 'swoosh'"):
        trace([TraceRequest(json.dumps(config), "ort", 64)], tmp_path / "config.json")


@pytest.mark.parametrize("dtype", ["float99", "torch.float16", 7], ids=str)
def test_a_dtype_that_torch_has_not_says_nothing(dtype: object, checkpoints: dict[str, Path]) -> None:
    config = json.loads((checkpoints["glm"] / "config.json").read_text())
    assert build_config(config | {"dtype": dtype}).hidden_size == config["hidden_size"]


def test_a_norm_may_have_no_epsilon(checkpoints: dict[str, Path]) -> None:
    """transformers computes 0.0 and refuses 0, which other programs write for it."""
    config = json.loads((checkpoints["glm4v"] / "config.json").read_text())
    config["text_config"]["rms_norm_eps"] = config["vision_config"]["rms_norm_eps"] = 0
    built = build_config(normalize(config, ()))
    assert (built.text_config.rms_norm_eps, built.vision_config.rms_norm_eps) == (0.0, 0.0)
