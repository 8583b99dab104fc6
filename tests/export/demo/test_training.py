"""The recipe on a small scale: the same model and losses, a few steps."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

import click
from click.testing import CliRunner
from transformers import Glm4vForConditionalGeneration, PreTrainedTokenizerFast

from edgeglm.export.demo.batches import HARD, ICONS, Batches, _kind_of, _sample_played
from edgeglm.export.demo.evaluate import CHECKPOINT
from edgeglm.export.demo.losses import encode_images
from edgeglm.export.demo.model import build_config, build_model, build_tokenizer
from edgeglm.export.demo.packing import Batch, Packer
from edgeglm.export.demo.pictures import CLASSES, COLUMNS, IMAGE_TOKENS, ROWS, Pictures, to_patches
from edgeglm.export.demo.stages import STAGES, Kind, Stage
from edgeglm.export.demo.train import Run, Trainer, main
from edgeglm.export.evaluate.original.whole import WholeOriginal

CPU = torch.device("cpu")
SMALL = tuple(
    replace(stage, steps=steps, images=2, questions=3)
    for stage, steps in zip(STAGES, (2, *[1] * (len(STAGES) - 1)), strict=True)
)


def batch_of(packer: Packer, stage: Stage, index: int = 0) -> Any:  # noqa: ANN401 (a test says which kind it is)
    """Return a batch of a stage."""
    return Batches(packer, "train", stage)[index]


def answers(images: int, questions: int) -> Stage:
    return Stage("test", "answers", 1, images=images, questions=questions)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return build_tokenizer(samples=500)


@pytest.fixture(scope="module")
def packer(tokenizer: PreTrainedTokenizerFast) -> Packer:
    return Packer(tokenizer)


@pytest.fixture(scope="module")
def model(tokenizer: PreTrainedTokenizerFast) -> Glm4vForConditionalGeneration:
    return build_model(build_config(tokenizer))


def test_the_tokenizer_is_deterministic_and_lossless() -> None:
    first, second = build_tokenizer(samples=300), build_tokenizer(samples=300)
    assert first.get_vocab() == second.get_vocab()
    for text in ('do(action="Type", text="shoulhond 42")', "打开设置里的无线网络开关\n", "<think>a</think>"):
        assert first.decode(first(text)["input_ids"]) == text


def test_batches_depend_on_nothing_but_their_index(packer: Packer) -> None:
    batches = Batches(packer, "train", answers(2, 3))
    first, again, other = batches[5], batches[5], batches[6]
    assert isinstance(first, Batch)
    assert isinstance(again, Batch)
    assert isinstance(other, Batch)
    assert torch.equal(first.tokens, again.tokens)
    assert torch.equal(first.pictures.pixels, again.pictures.pixels)
    assert not torch.equal(first.pictures.pixels, other.pictures.pixels)


def test_batched_vision_equals_transformers(packer: Packer, model: Glm4vForConditionalGeneration) -> None:
    pictures = batch_of(packer, replace(STAGES[0], images=2))
    assert isinstance(pictures, Pictures)
    patches = to_patches(pictures.pixels)
    doubled = patches.view(-1, 3, 1, 14 * 14).expand(-1, -1, 2, -1).reshape(-1, 3 * 2 * 14 * 14)
    with torch.no_grad():
        expected = model.model.visual(doubled, torch.tensor([[1, 24, 12]] * 2)).pooler_output
        got = encode_images(model.model.visual, patches)
    assert got.shape == (2, IMAGE_TOKENS, 256)
    torch.testing.assert_close(got.flatten(0, 1), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "losses"), [("tower", ["helper"]), ("answers", ["helper", "answer"]), ("pointing", ["helper"])]
)
def test_a_few_steps_lower_a_loss(tokenizer: PreTrainedTokenizerFast, kind: Kind, losses: list[str]) -> None:
    torch.manual_seed(0)
    stage = replace(answers(2, 4), kind=kind, steps=40, warm_up=1, learning_rate=2e-3)
    trainer = Trainer(tokenizer, CPU)
    batches = Batches(trainer.packer, "train", stage)
    reports = [trainer.step(stage, number, batches[number % 2]) for number in range(20)]
    assert all(reports[-1][loss] < 0.7 * reports[0][loss] for loss in losses)


def test_the_tower_alone_leaves_the_decoder_as_it_is(tokenizer: PreTrainedTokenizerFast) -> None:
    trainer, stage = Trainer(tokenizer, CPU), replace(STAGES[0], images=2)
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    trainer.step(stage, 0, batch_of(trainer.packer, stage))
    changed = {name for name, value in trainer.model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed
    assert all(name.startswith("model.visual.") for name in changed)


def test_pages_with_icons_and_visits_to_the_settings_are_as_frequent_as_a_stage_says(packer: Packer) -> None:
    few, many = (_icons(batch_of(packer, replace(STAGES[0], images=32, icons=share))) for share in (0.0, 1.0))
    assert 0 < few < 16
    assert many == 32
    asked = [_sample_played(Random(number), replace(answers(1, 1), settings=1.0)) for number in range(10)]
    wishes = [steps[0].instruction for _, steps in asked]
    assert all("Settings" in wish or "设置" in wish for wish in wishes)


def _icons(pictures: Pictures) -> int:
    """Return how many of the pictures have a small icon."""
    icons = torch.tensor([CLASSES[name] for name in ICONS])
    return len(pictures.cells[torch.isin(pictures.cells[:, 2], icons), 0].unique())


def test_a_phone_is_asked_for_the_next_step_of_several_goals() -> None:
    asked = [_sample_played(Random(number), replace(answers(1, 6), goals=5)) for number in range(30)]
    assert sum(len(steps) == 5 for _, steps in asked) > 15
    for _, steps in asked:
        assert len({step.instruction for step in steps}) > len(steps) - 2
    several = [steps for _, steps in asked if len(steps) > 1]
    # What is right depends on the goal and on what is done, not on the screen alone.
    assert sum(len({step.action for step in steps}) > 1 for steps in several) > len(several) / 2


def test_hard_steps_and_chinese_wishes_are_asked_as_often_as_a_stage_says() -> None:
    stages = (replace(answers(1, 1), hard=hard, chinese_wishes=share) for hard, share in ((1.0, 0.2), (9.0, 0.8)))
    firsts = [[_sample_played(Random(number), stage)[1][0] for number in range(40)] for stage in stages]
    few, many = (sum(_kind_of(step) in HARD for step in steps) for steps in firsts)
    assert 0 < 1.5 * few < many
    few, many = (sum(not step.instruction.isascii() for step in steps) for steps in firsts)
    assert 0 < 1.5 * few < many


def test_pointing_batches_answer_only_what_is_typed(packer: Packer) -> None:
    """Two places a question at which the target, or that there is none, must be known; two more in an answer."""
    batch = batch_of(packer, replace(answers(12, 5), kind="pointing"))
    written = (batch.labels == packer.end).sum()
    assert written > 0
    assert (batch.labels == packer.encode("Type")[0]).sum() == written
    assert len(batch.pointers) == 12 * 5 * 2 + 2 * written
    nowhere = (batch.pointers[:, 1:] == torch.tensor([ROWS, COLUMNS])).all(1)
    assert 0 < nowhere.sum() < len(nowhere)


def test_rates_and_weights_change_as_a_stage_says() -> None:
    stage = replace(answers(1, 1), steps=100, warm_up=10, last_rate=0.02, helper=(0.5, 0.1))
    assert stage.rate(0) < stage.rate(5) < stage.rate(9) <= 1e-3
    assert stage.rate(99) < 0.03 * 1e-3
    assert (stage.helper_weight(0), round(stage.helper_weight(100), 6)) == (0.5, 0.1)


def quiet(record: dict[str, object]) -> None:
    """Take a report."""


class Stop(Exception):
    """A run that is cut off."""


def test_a_stopped_run_goes_on_to_the_same_weights(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    def run(folder: str, kind: type[Run] = Run) -> Trainer:
        if not (tmp_path / folder).exists():
            tokenizer.save_pretrained(tmp_path / folder / "tokenizer")
        return kind(tmp_path / folder, SMALL, 1, 0, quiet, workers=0).train()

    class Stopped(Run):
        def _save(self, trainer: Trainer, stage: Stage, done: int) -> None:
            super()._save(trainer, stage, done)
            raise Stop

    for _ in range(sum(stage.steps for stage in SMALL)):
        with pytest.raises(Stop):
            run("parts", Stopped)
    resumed, whole = run("parts", Stopped), run("whole")
    torch.testing.assert_close(resumed.model.state_dict(), whole.model.state_dict())
    changed = [*SMALL[:-1], replace(SMALL[-1], learning_rate=5.0)]
    with pytest.raises(click.UsageError, match="another plan"):
        Run(tmp_path / "parts", changed, 1, 0, quiet, workers=0).train()


def test_a_run_goes_on_with_a_checkpoint(tmp_path: Path) -> None:
    reports: list[dict[str, object]] = []
    stage = replace(SMALL[-1], steps=1, learning_rate=1e-9)
    trainer = Run(tmp_path, [stage], 1, 2, reports.append, 0, CHECKPOINT).train()
    source = WholeOriginal.load(CHECKPOINT)
    assert trainer.tokenizer.get_vocab() == source.tokenizer.get_vocab()
    assert "validation" in reports[-1]
    torch.testing.assert_close(trainer.model.state_dict(), source.model.state_dict(), rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--first", "slips"], "belong together"),
        (["--checkpoint", str(CHECKPOINT)], "belong together"),
        (["--first", "slips", "--until", "hard", "--checkpoint", str(CHECKPOINT)], "is before"),
    ],
)
def test_stages_that_make_no_run_are_refused(tmp_path: Path, options: list[str], reason: str) -> None:
    result = CliRunner().invoke(main, ["--out", str(tmp_path / "out"), *options])
    assert (result.exit_code, reason in result.output) == (2, True)
    assert not (tmp_path / "out").exists()
