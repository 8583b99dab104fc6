"""A packed batch is what the client sends: tokens, positions and logits of each question are the conversation's own."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from PIL import Image
from torch import Tensor
from transformers import Glm4vForConditionalGeneration

from edgeglm.export.demo.client import conversation
from edgeglm.export.demo.goals import play
from edgeglm.export.demo.losses import read
from edgeglm.export.demo.model import build_config, build_model, build_tokenizer, save
from edgeglm.export.demo.packing import BUCKET, IGNORE, Batch, Packer, Row
from edgeglm.export.demo.pictures import COLUMNS, ROWS, take_pictures
from edgeglm.export.demo.prompts import sample_prompt
from edgeglm.export.demo.screens import Scene
from edgeglm.export.demo.steps import Step
from edgeglm.export.demo.tasks import sample_step
from edgeglm.export.demo.wishes import sample_goal
from edgeglm.export.evaluate.original.whole import WholeOriginal

SYSTEM = sample_prompt(Random(1), "cn", 0.2)


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> WholeOriginal:
    """An untrained model with its own files."""
    folder, tokenizer = tmp_path_factory.mktemp("untrained"), build_tokenizer(samples=500)
    save(build_model(build_config(tokenizer)), tokenizer, folder)
    return WholeOriginal.load(folder)


@pytest.fixture(scope="module")
def packer(agent: WholeOriginal) -> Packer:
    return Packer(agent.tokenizer)


def played(seed: int) -> tuple[Scene, list[Step]]:
    """Return a page late in a goal, with the goal's step, which has a history, and two steps without."""
    random = Random(seed)
    while True:
        steps = list(play(*sample_goal(random, "cn")))
        scene, step = steps[-2]
        if len(steps) > 3 and scene.kind == "page":
            return scene, [_plain_step(scene, random), step, _plain_step(scene, random)]


def _plain_step(scene: Scene, random: Random) -> Step:
    while (step := sample_step(scene, random)).previous:
        pass
    return step


@pytest.fixture(scope="module")
def screens() -> list[tuple[Scene, list[Step]]]:
    return [played(seed) for seed in range(3)]


@pytest.fixture(scope="module")
def rows(screens: list[tuple[Scene, list[Step]]]) -> list[Row]:
    """Rows of each form."""
    forms = ((True, True), (True, False), (False, True))
    return [Row(tuple(steps), *form) for (_, steps), form in zip(screens, forms, strict=True)]


@pytest.fixture(scope="module")
def batch(packer: Packer, screens: list[tuple[Scene, list[Step]]], rows: list[Row]) -> Batch:
    return packer.pack(take_pictures([scene for scene, _ in screens], Random(0)), rows, SYSTEM)


def groups_of(batch: Batch) -> Tensor:
    """Return the group of each token, (L)."""
    groups: Tensor = torch.arange(len(batch.lengths)).repeat_interleave(batch.lengths)
    return groups


def answers_of(batch: Batch, picture: int) -> Iterator[Tensor]:
    """Yield the positions that predict each answer about a picture, those of its largest group first."""
    answers, group = [], groups_of(batch)
    for position, shown in batch.images.tolist():
        is_one = group == group[position]
        if shown == picture and (asked := ((batch.labels != IGNORE) & is_one).nonzero()[:, 0]).numel():
            breaks = (asked.diff() > 1).nonzero()[:, 0] + 1
            answers.append(asked.tensor_split(breaks.tolist()))
    for group_answers in sorted(answers, key=len, reverse=True):
        yield from group_answers


def in_order(row: Row) -> list[Step]:
    """Return a row's steps as they are packed: those with a history in the client's form come last."""
    return sorted(row.steps, key=lambda step: row.is_client and bool(step.previous))


def messages_of(row: Row, step: Step) -> list[dict[str, object]]:
    """Return a step's conversation, as the client sends it or in the short form."""
    before, text = conversation(step, SYSTEM, row.keeps_tags) if row.is_client else ([], step.prompt)
    messages: list[dict[str, object]] = [{"role": role, "content": said} for role, said in before]
    return [*messages, {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]}]


def alone(agent: WholeOriginal, picture: Image.Image, messages: list[dict[str, object]], answer: list[int]) -> Tensor:
    """Return the logits of transformers for an answer to one conversation, (tokens, vocabulary)."""
    inputs = dict(agent.encode([picture], [messages]))
    given = inputs["input_ids"].shape[1]
    tokens = torch.tensor([answer[:-1]], dtype=torch.int64)
    inputs["input_ids"] = torch.cat([inputs["input_ids"], tokens], 1)
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    if "mm_token_type_ids" in inputs:
        inputs["mm_token_type_ids"] = torch.cat([inputs["mm_token_type_ids"], torch.zeros_like(tokens)], 1)
    with torch.no_grad():
        logits: Tensor = agent.model(**inputs).logits[0, given - 1 :]
    return logits


def test_logits_are_those_of_transformers_on_the_conversation_alone(
    agent: WholeOriginal, packer: Packer, rows: list[Row], batch: Batch
) -> None:
    model: Glm4vForConditionalGeneration = agent.model
    with torch.no_grad():
        _, hidden = read(model, batch, learns_prompt=False)
        packed = model.lm_head(hidden)
    compared = 0
    for number, row in enumerate(rows):
        picture = Image.fromarray(batch.pictures.pixels[number].numpy())
        for step, places in zip(in_order(row), answers_of(batch, number), strict=True):
            answer = batch.labels[places].tolist()
            assert answer == packer.encode(step.response)
            expected = alone(agent, picture, messages_of(row, step), answer)
            torch.testing.assert_close(packed[places], expected, rtol=1e-3, atol=2e-4)
            compared += 1
    assert compared == 9


def test_a_change_of_one_question_or_of_the_prompt_reaches_only_who_sees_it(
    agent: WholeOriginal, packer: Packer, screens: list[tuple[Scene, list[Step]]], rows: list[Row], batch: Batch
) -> None:
    def hidden_of(batch: Batch) -> Tensor:
        with torch.no_grad():
            return read(agent.model, batch, learns_prompt=False)[1]

    before = hidden_of(batch)
    is_other = (groups_of(batch) == 0) & (batch.segment == 1)
    tokens = torch.where(is_other, packer.pad, batch.tokens)
    after = hidden_of(Batch(**{**vars(batch), "tokens": tokens}))
    stays = (batch.segment >= 0) & ~is_other
    torch.testing.assert_close(after[stays], before[stays])
    assert not torch.allclose(after[is_other], before[is_other])
    other = packer.pack(batch.pictures, rows, sample_prompt(Random(2), "en", 0.2))
    changed = hidden_of(other)
    sees_it = batch.has_system[groups_of(batch)]
    torch.testing.assert_close(changed[~sees_it], before[~sees_it])
    assert not torch.allclose(changed[sees_it], before[sees_it])


def test_the_prompts_gradient_is_taken_only_where_it_is_learnt(agent: WholeOriginal, batch: Batch) -> None:
    embedding = agent.model.model.language_model.embed_tokens
    only_there = set(batch.system.tolist()) - set(batch.tokens.tolist())
    for learns in (False, True):
        embedding.weight.grad = None
        read(agent.model, batch, learns)[1].sum().backward()
        assert embedding.weight.grad is not None
        assert bool(embedding.weight.grad[sorted(only_there)].abs().sum() > 0) is learns
    agent.model.zero_grad(set_to_none=True)


def test_pointers_are_at_the_end_of_questions_and_at_their_actions(
    packer: Packer, rows: list[Row], batch: Batch
) -> None:
    assert len(batch.pointers) == 4 * 9
    spot, patch_row, patch_column = batch.pointers.unbind(1)
    at = batch.tokens[spot].view(-1, 4)
    assert (at[:, :2] == torch.tensor(packer.reply)).all()
    assert (at[:, 2] == packer.answer).all()
    nowhere = ((patch_row == ROWS) & (patch_column == COLUMNS)).view(-1, 4)
    assert int(nowhere[:, 0].sum()) == sum(step.box is None for row in rows for step in row.steps)
    assert (nowhere == nowhere[:, :1]).all()


def test_lengths_are_padded_and_padding_is_seen_by_no_question(batch: Batch) -> None:
    assert sorted(set(batch.images[:, 1].tolist())) == [0, 1, 2]
    assert not (batch.lengths % BUCKET).any()
    assert len(batch.system) % BUCKET == 0
    for mask, segment in zip(batch.masks(), batch.segment.split(batch.lengths.tolist()), strict=True):
        shown = mask.shape[1] - len(mask)
        is_padding = torch.cat([~batch.is_system[:shown], segment < 0])
        assert not (mask & is_padding)[segment >= 0].any()
        assert mask.any(1).all()
