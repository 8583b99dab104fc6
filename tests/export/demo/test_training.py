"""The recipe on a small scale: the same model and losses, a few steps."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

import click
from torch import Tensor

from edgeglm.export.demo.batches import COLUMNS, IMAGE_TOKENS, ROWS, Batches, Packer, Recipe, to_patches
from edgeglm.export.demo.losses import Helper, encode_images, losses
from edgeglm.export.demo.model import build_config, build_model, build_tokenizer
from edgeglm.export.demo.train import Plan, Trainer, train

PLAN = Plan(
    vision_steps=1, early_steps=1, pointing_steps=1, steps=5, images=2, pointing_questions=3, questions=2, warm_up=2
)


@pytest.fixture(scope="module")
def packer() -> Packer:
    return Packer(build_tokenizer(samples=500))


def test_the_tokenizer_is_deterministic_and_lossless() -> None:
    first, second = build_tokenizer(samples=300), build_tokenizer(samples=300)
    assert first.get_vocab() == second.get_vocab()
    for text in ('do(action="Type", text="shoulhond 42")', "打开设置里的无线网络开关\n", "<think>a</think>"):
        assert first.decode(first(text)["input_ids"]) == text


def test_batches_depend_on_nothing_but_their_index(packer: Packer) -> None:
    batches = Batches(packer, "train", lambda _: Recipe(images=2, questions=3))
    first, again, other = batches[5], batches[5], batches[6]
    assert torch.equal(first.tokens, again.tokens)
    assert torch.equal(first.pixels, again.pixels)
    assert not torch.equal(first.pixels, other.pixels)


def test_batched_vision_equals_transformers(packer: Packer) -> None:
    model = build_model(build_config(build_tokenizer(samples=500)))
    patches = to_patches(Batches(packer, "train", lambda _: Recipe(2, 1))[0].pixels)
    doubled = patches.view(-1, 3, 1, 14 * 14).expand(-1, -1, 2, -1).reshape(-1, 3 * 2 * 14 * 14)
    with torch.no_grad():
        expected = model.model.visual(doubled, torch.tensor([[1, 24, 12]] * 2)).pooler_output
        got = encode_images(model.model.visual, patches)
    assert got.shape == (2, IMAGE_TOKENS, 256)
    torch.testing.assert_close(got.flatten(0, 1), expected, rtol=1e-4, atol=1e-5)


def test_packing_hides_questions_from_one_another(packer: Packer) -> None:
    """A question's loss in a pack is its loss alone."""
    model = build_model(build_config(build_tokenizer(samples=500)))
    helper = Helper(model, packer)
    pack = Batches(packer, "train", lambda _: Recipe(images=1, questions=4))[3]

    def alone(number: int) -> Tensor:
        labels = torch.where(pack.segment.roll(-1, 1) == number, pack.labels, -100)
        return losses(model, helper, packer, replace(pack, labels=labels)).answer

    with torch.no_grad():
        before = alone(2)
        scrambled = pack.tokens.clone()
        scrambled[(pack.segment > 0) & (pack.segment != 2)] = packer.end
        pack = replace(pack, tokens=scrambled)
        assert torch.allclose(alone(2), before, atol=1e-5)


def test_a_few_steps_lower_the_loss() -> None:
    torch.manual_seed(0)
    plan = Plan(vision_steps=0, early_steps=0, pointing_steps=0, steps=40, images=2, questions=4, warm_up=1)
    trainer = Trainer(plan, build_tokenizer(samples=500), torch.device("cpu"))
    batches = Batches(trainer.packer, "train", lambda _: Recipe(2, 4))
    reports = [trainer.step(batches[index % 2]) for index in range(24)]
    assert reports[-1]["answer"] < 0.7 * reports[0]["answer"]
    assert reports[-1]["helper"] < 0.7 * reports[0]["helper"]


def test_pointing_batches_answer_only_what_is_typed(packer: Packer) -> None:
    """Two places a question at which the target, or that there is none, must be known; two more in an answer."""
    batch = Batches(packer, "train", lambda _: Recipe(images=12, questions=5, answers=False))[0]
    answers = (batch.labels == packer.end).sum()
    assert answers > 0
    assert (batch.labels == packer.encode("Type")[0]).sum() == answers
    assert len(batch.pointers) == 12 * 5 * 2 + 2 * answers
    nowhere = (batch.pointers[:, 2:] == torch.tensor([ROWS, COLUMNS])).all(1)
    assert 0 < nowhere.sum() < len(nowhere)


def test_a_few_pointing_steps_lower_their_loss() -> None:
    plan = Plan(vision_steps=0, early_steps=0, pointing_steps=99, images=2, pointing_questions=4, learning_rate=2e-3)
    trainer = Trainer(plan, build_tokenizer(samples=500), torch.device("cpu"))
    batches = Batches(trainer.packer, "train", plan.recipe)
    reports = [trainer.step(batches[index % 2]) for index in range(24)]
    assert reports[-1]["helper"] < 0.7 * reports[0]["helper"]


@pytest.mark.slow
def test_a_stopped_run_goes_on_to_the_same_weights(tmp_path: Path) -> None:
    def run(folder: Path) -> Trainer:
        return train(PLAN, folder, every=5, samples=0, log=lambda record: None)

    whole = run(tmp_path / "whole")
    halfway: list[dict[str, object]] = []

    class Stop(Exception):
        pass

    def stop(record: dict[str, object]) -> None:
        halfway.append(record)
        raise Stop

    with pytest.raises(Stop):
        train(PLAN, tmp_path / "parts", every=5, samples=1, log=stop)
    resumed = run(tmp_path / "parts")
    for name, value in whole.model.state_dict().items():
        torch.testing.assert_close(resumed.model.state_dict()[name], value, msg=name)
    with pytest.raises(click.UsageError, match="another plan"):
        train(replace(PLAN, steps=99), tmp_path / "parts", every=5, samples=0, log=lambda record: None)
