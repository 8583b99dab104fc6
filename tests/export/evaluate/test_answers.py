"""Answers to screens: bounded in memory on both sides, those of the original exact and kept."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from msgspec.structs import replace

from edgeglm.bundle import Bundle, load_bundle
from edgeglm.cli.main import main
from edgeglm.errors import BudgetError
from edgeglm.export.checkpoint.locate import DEMO
from edgeglm.export.checkpoint.reader import Checkpoint
from edgeglm.export.evaluate import answers
from edgeglm.export.evaluate.answers import artifact_answers, check_room, reference_answers
from edgeglm.export.evaluate.original import streamed
from edgeglm.export.evaluate.original.drafter import MAX_NEW_TOKENS, Drafter
from edgeglm.export.evaluate.original.streamed import corrected
from edgeglm.export.samples.screenshots import Sample, read_samples
from edgeglm.export.samples.shipped import DATA
from edgeglm.runtimes.core.runner import Runner
from tests.runtimes.demo import demo_bundle

ENOUGH = 1 << 40  # bytes of memory, in which the original is a whole


@pytest.fixture(scope="module")
def samples() -> list[Sample]:
    return list(read_samples(DATA / "evaluation.jsonl", 5))


@pytest.fixture(scope="module")
def original() -> Checkpoint:
    return Checkpoint.open(DEMO)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return load_bundle(demo_bundle(tmp_path_factory.mktemp("fp32") / "bundle", "cpu", "fp32"))


def tokens(bundle: Bundle, samples: Sequence[Sample], begun: Sequence[Sequence[int]] | None = None) -> list[list[int]]:
    """Return the whole answers of a bundle, those tokens included that they begin with."""
    answers = [answer.tokens for answer in artifact_answers(bundle, samples, begun)]
    return [[*first, *answer] for first, answer in zip(begun or [()] * len(samples), answers, strict=True)]


def no_draft(samples: Sequence[Sample], begun: Sequence[Sequence[int]]) -> list[list[int]]:
    raise AssertionError("nothing is to be drafted")


NOBODY = Drafter((), no_draft)


def test_the_originals_answers_are_kept(
    original: Checkpoint, samples: list[Sample], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    known = reference_answers(original, samples, ENOUGH, NOBODY)
    # Once they are known, nothing is loaded or drafted; other samples are not known.
    assert reference_answers(original, samples, 0, NOBODY) == known
    with pytest.raises(AssertionError, match="nothing is to be drafted"):
        reference_answers(original, samples[:4], 0, NOBODY)
    # What is damaged is computed again.
    (file,) = (tmp_path / "edgeglm" / "answers").iterdir()
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(AssertionError, match="nothing is to be drafted"):
        reference_answers(original, samples, 0, NOBODY)


@pytest.mark.parametrize("spoil", [lambda answer: answer, lambda answer: [7, 7, 7], lambda answer: [*answer[:5], 9]])
def test_streamed_answers_are_those_of_transformers_whatever_is_drafted(
    original: Checkpoint,
    bundle: Bundle,
    samples: list[Sample],
    spoil: Callable[[list[int]], list[int]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    whole = reference_answers(original, samples, ENOUGH, NOBODY)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
    # So that the samples pass in several batches, and their pictures too.
    monkeypatch.setattr(streamed, "TOKENS", 300)
    monkeypatch.setattr(streamed, "PATCHES", 288)
    drafts = [spoil(answer) for answer in tokens(bundle, samples)]
    asked = []

    def draft(some: Sequence[Sample], begun: Sequence[Sequence[int]]) -> Sequence[Sequence[int]]:
        asked.append(len(some))
        return tokens(bundle, some, begun) if any(begun) else drafts

    ends = bundle.manifest.generation.eos_token_ids
    assert reference_answers(original, samples, 0, Drafter(ends, draft)) == whole
    # Right drafts are right at once, wrong ones as soon as the first difference is mended.
    assert asked == ([5] if drafts == tokens(bundle, samples) else [5, 5])


def test_a_draft_is_corrected_at_its_first_difference() -> None:
    assert corrected([5, 6, 1], [5, 6, 1], {1}) == ([5, 6, 1], True)
    assert corrected([5, 6, 1], [5, 7, 1], {1}) == ([5, 7], False)
    assert corrected([5, 6, 1], [5, 1, 9], {1}) == ([5, 1], True)
    longest = list(range(10, 10 + MAX_NEW_TOKENS))
    assert corrected(longest, longest, {1}) == (longest, True)
    assert corrected(longest, [*longest[:-1], 9], {1}) == ([*longest[:-1], 9], True)


def test_a_bundle_answers_in_groups_as_at_once(
    original: Checkpoint, bundle: Bundle, samples: list[Sample], monkeypatch: pytest.MonkeyPatch
) -> None:
    together = tokens(bundle, samples)
    monkeypatch.setattr(answers, "WAITING_BYTES", 1)
    assert tokens(bundle, samples) == together
    assert tokens(bundle, samples, [answer[:7] for answer in together]) == together
    assert artifact_answers(bundle, []) == []
    assert len({*map(tuple, together)}) == len(samples)
    before = (("system", "You work a phone."), ("user", "Open Maps"), ("assistant", 'do(action="Launch", app="Maps")'))
    chats = [dataclasses.replace(sample, before=before) for sample in samples]
    answered = artifact_answers(bundle, chats)
    assert [answer.text for answer in answered] == reference_answers(original, chats, ENOUGH, NOBODY)
    plain = artifact_answers(bundle, samples)
    assert all(long.prompt_tokens > short.prompt_tokens for long, short in zip(answered, plain, strict=True))


def test_an_answer_is_what_the_runner_prints(
    bundle: Bundle, samples: list[Sample], capsys: pytest.CaptureFixture[str]
) -> None:
    measured = artifact_answers(bundle, [*samples, dataclasses.replace(samples[0], screen=samples[0].image)])
    capsys.readouterr()
    for sample, answer in zip(samples, measured, strict=False):
        command = ["run", str(bundle.folder), "--image", str(sample.screen), f"--prompt={sample.prompt}"]
        assert main([*command, "--temperature", "0", "--max-new-tokens", str(MAX_NEW_TOKENS), "--json"]) == 0
        printed = json.loads(capsys.readouterr().out)
        assert (printed["text"], printed["generated_tokens"]) == (answer.text, len(answer.tokens))
    # A picture without a file is given as its pixels.
    assert measured[-1].tokens == measured[0].tokens


def test_a_prompt_without_room_names_the_context_that_it_needs(bundle: Bundle, samples: list[Sample]) -> None:
    short = replace(bundle.manifest, model=replace(bundle.manifest.model, max_positions=128))
    with Runner(bundle.folder) as runner:
        prompts = [runner.prompt(sample.asked) for sample in samples]
    check_room(bundle, prompts)
    with pytest.raises(BudgetError, match=r"take \d+ tokens, and it has room for 128; export it with --context"):
        check_room(Bundle(bundle.folder, short), prompts)
