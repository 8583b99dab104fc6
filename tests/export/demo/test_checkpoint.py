"""The shipped demo model, in plain transformers, from its own files."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from safetensors import safe_open

from edgeglm.export.demo.evaluate import CHECKPOINT
from edgeglm.export.demo.metrics import score
from edgeglm.export.evaluate.original.whole import WholeOriginal
from edgeglm.export.samples.screenshots import read_samples
from edgeglm.export.samples.shipped import DATA


@pytest.fixture(scope="module")
def agent() -> WholeOriginal:
    return WholeOriginal.load(CHECKPOINT)


def test_answers_held_out_screens_right(agent: WholeOriginal) -> None:
    samples = list(read_samples(DATA / "evaluation.jsonl", limit=24))
    answers = list(agent.answer([sample.image for sample in samples], [sample.messages for sample in samples]))
    # docs/demo-model.md has the figure over the whole set, which a sample this small scatters around.
    assert score([sample.expected for sample in samples], answers).step_success >= 0.9


def test_an_answer_does_not_depend_on_its_batch(agent: WholeOriginal) -> None:
    samples = list(read_samples(DATA / "evaluation.jsonl", limit=6))
    images, chats = [sample.image for sample in samples], [sample.messages for sample in samples]
    together = list(agent.answer(images, chats))
    assert together == list(agent.answer(images, chats, batch_size=1))


def test_ships_small_half_precision_weights_and_what_loads_them() -> None:
    assert sum(file.stat().st_size for file in CHECKPOINT.iterdir()) <= 20_000_000
    with safe_open(CHECKPOINT / "model.safetensors", "pt") as weights:
        assert {weights.get_slice(name).get_dtype() for name in weights.keys()} == {"F16"}  # noqa: SIM118
    config = json.loads((CHECKPOINT / "config.json").read_text())
    assert config["architectures"] == ["Glm4vForConditionalGeneration"]
    names = {file.name for file in CHECKPOINT.iterdir()}
    assert {
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
        "preprocessor_config.json",
    } <= names


def test_the_evaluation_command_prints_one_json_object() -> None:
    command = [sys.executable, "-m", "edgeglm.export.demo.evaluate", "--limit", "4", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    result = json.loads(done.stdout)
    assert result["samples"] == 4
    assert sum(group["samples"] for group in result["by_action"].values()) == 4
