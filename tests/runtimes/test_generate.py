"""Tokens of answers on the demo: what a grammar changes of them and of the passes that they take, and what not."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("llguidance")

from edgeglm.actions import parse_action
from edgeglm.cli.main import main
from edgeglm.errors import UnsupportedError, UsageError
from edgeglm.export.samples.screenshots import read_samples
from edgeglm.export.samples.shipped import DATA
from edgeglm.runtimes.core.answer import Answer, StopAnswer
from edgeglm.runtimes.core.drafts import Drafts
from edgeglm.runtimes.core.grammars import Choice, GrammarText, read_grammar
from edgeglm.runtimes.core.prompt import Prompt
from edgeglm.runtimes.core.runner import Runner
from edgeglm.runtimes.core.sampling import Sampler, Sampling
from edgeglm.runtimes.serve.answers import ScoringSampler
from tests.bundles import reseal
from tests.runtimes.demo import demo_bundle

SCREENS, HOT = 24, Sampling(temperature=4.0, top_k=20)
PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 8}, "age": {"type": "integer", "maximum": 150}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
SCHEMA = GrammarText("person", json.dumps(PERSON), is_schema=True)


@pytest.fixture(scope="module")
def runner(exact: Path) -> Iterator[Runner]:
    with Runner(exact) as opened:
        yield opened


@pytest.fixture(scope="module")
def prompts(runner: Runner) -> list[Prompt]:
    made = [runner.prompt(sample.asked) for sample in read_samples(DATA / "evaluation.jsonl", SCREENS)]
    runner.encode(made)
    return made


def answers(
    runner: Runner, prompts: Sequence[Prompt], grammar: Choice, drafts: Drafts | None, seed: int | None = None
) -> list[Answer]:
    """Ask with drafts and without; greedy without a seed."""
    before, runner.drafts = runner.drafts, drafts
    sampling = Sampling() if seed is None else Sampling(temperature=1.0)
    try:
        return [runner.answer(prompt, sampling=sampling, seed=seed or 0, grammar=grammar) for prompt in prompts]
    finally:
        runner.drafts = before


def test_answers_are_those_of_plain_decoding_in_fewer_passes(runner: Runner, prompts: list[Prompt]) -> None:
    plain = answers(runner, prompts, "off", None)
    tokens = sum(answer.generated_tokens for answer in plain)
    assert tokens == sum(answer.model_passes for answer in plain)
    ways: list[tuple[Choice, Drafts | None, float]]
    ways = [("auto", None, 0.8), ("off", Drafts(), 0.7), ("auto", Drafts(), 0.6)]
    for grammar, drafts, most in ways:
        held = answers(runner, prompts, grammar, drafts)
        for answer, other in zip(held, plain, strict=True):
            assert answer.tokens == other.tokens or (other.action is None and grammar == "auto")
            assert answer.action is not None or grammar == "off"
        assert sum(answer.model_passes for answer in held) < most * tokens


def test_sampled_answers_are_those_without_drafts(runner: Runner, prompts: list[Prompt]) -> None:
    choices: list[Choice] = ["off", "auto"]
    for grammar in choices:
        drafts = Drafts()
        for seed in range(1, 4):
            plain, drafted = (answers(runner, prompts[:8], grammar, these, seed) for these in (None, drafts))
            assert [answer.tokens for answer in drafted] == [answer.tokens for answer in plain]
            assert sum(answer.model_passes for answer in drafted) < sum(answer.model_passes for answer in plain)


def test_where_an_answer_would_leave_the_grammar_the_mask_decides(runner: Runner, prompts: list[Prompt]) -> None:
    plain, held = (
        [runner.answer(prompts[0], sampling=HOT, seed=seed, grammar=grammar, max_new_tokens=300) for seed in range(6)]
        for grammar in ("off", "actions")
    )
    assert not all(answer.action for answer in plain)
    whole = [answer for answer in held if answer.finish_reason == "stop"]
    assert whole
    assert all(answer.action for answer in whole)


def test_a_users_schema_is_followed_to_its_end(runner: Runner, prompts: list[Prompt]) -> None:
    for sampling in (Sampling(), HOT, Sampling(repetition_penalty=2.0, no_repeat_ngram_size=1)):
        answer = runner.answer(prompts[0], sampling=sampling, grammar=SCHEMA, max_new_tokens=200)
        assert answer.finish_reason == "stop"
        assert json.loads(answer.text).keys() == {"name", "age"}
        assert answer.tokens[-1] == runner.bundle.manifest.generation.eos_token_ids[0]
        assert answer.model_passes < answer.generated_tokens


def test_what_the_settings_ban_comes_where_the_grammar_leaves_nothing_else(
    runner: Runner, prompts: list[Prompt]
) -> None:
    (digit,) = runner.chat.bounded.encode("7")
    sampling, grammar = Sampling(suppress_tokens=(digit,)), GrammarText("seven", "start: /[17]/ /7/", is_schema=False)
    assert runner.answer(prompts[0], sampling=sampling, grammar=grammar).text == "17"


def test_the_state_behind_an_answer_is_what_was_said(runner: Runner, prompts: list[Prompt]) -> None:
    whole = runner.answer(prompts[1], sampling=Sampling())

    def stop(piece: str) -> None:
        if "(action" in piece:
            raise StopAnswer

    for _ in range(2):
        part = runner.answer(prompts[1], sampling=Sampling(), show=stop)
        assert part.finish_reason == "stop"
        assert whole.text.startswith(part.text)
    for limit in (1, 5, 9, whole.generated_tokens):
        part = runner.answer(prompts[1], sampling=Sampling(), max_new_tokens=limit)
        assert part.tokens == whole.tokens[:limit]
        follow = prompts[1].followed_by(part.tokens[:-1])
        again = runner.answer(follow, sampling=Sampling(), max_new_tokens=128)
        assert [*part.tokens[:-1], *again.tokens] == whole.tokens


def test_an_answer_that_has_begun_goes_on_in_the_grammar(runner: Runner, prompts: list[Prompt]) -> None:
    begun = runner.chat.bounded.encode("<think>x</think><answer>do(action=")
    answer = runner.answer(prompts[2].followed_by(begun), sampling=HOT, grammar="auto")
    assert parse_action(runner.chat.tokenizer.decode([*begun, *answer.tokens], skip_special_tokens=False))
    outside = prompts[2].followed_by(runner.chat.bounded.encode("<answer>No"))
    assert runner.answer(outside, sampling=Sampling(), max_new_tokens=4).generated_tokens == 4


def test_forced_tokens_have_their_probabilities(runner: Runner, prompts: list[Prompt]) -> None:
    scores = []
    for grammar in ("off", "auto"):
        sampler = ScoringSampler(Sampling(), 0, 2, runner.chat.tokenizer)
        answer = runner.answer(prompts[3], sampling=sampler, grammar=grammar)
        scores.append([score.logprob for score in sampler.take()])
        assert len(scores[-1]) == answer.generated_tokens
    assert scores[0] == pytest.approx(scores[1], abs=1e-3)


def test_complete_takes_a_grammar(runner: Runner, prompts: list[Prompt]) -> None:
    tokens = [*runner.complete(prompts[0], Sampler(Sampling()), 200, runner.ends, SCHEMA)]
    assert json.loads(runner.chat.tokenizer.decode(tokens)).keys() == {"name", "age"}


@pytest.mark.parametrize("text", ["<think>", "a</answer>b<|user|>", "<|endoftext|>"])
def test_what_a_grammar_forces_is_text_and_no_special_token(runner: Runner, prompts: list[Prompt], text: str) -> None:
    grammar = GrammarText("x", json.dumps({"const": text}), is_schema=True)
    answer = runner.answer(prompts[0], max_new_tokens=60, sampling=Sampler(Sampling()), grammar=grammar)
    assert json.loads(answer.text) == text


def test_bundles_of_other_models_have_no_grammar(exact: Path, tmp_path: Path) -> None:
    folder = demo_bundle(tmp_path / "bundle", "cpu", "fp32")
    reseal(folder, lambda manifest: manifest["model"].pop("task"))
    with Runner(folder) as other:
        assert other.grammars.find(None) is None
        assert other.grammars.find("actions") is not None


def test_without_llguidance_answers_are_the_same_and_a_note_says_so_once(
    exact: Path, prompts: list[Prompt], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with Runner(exact) as other:
        first, second = (other.answer(prompts[0], sampling=Sampling(), max_new_tokens=3) for _ in range(2))
        assert [note for note in first.notes if "pip install llguidance" in note]
        assert second.notes == []
        assert first.generated_tokens == 3
        for choice in (SCHEMA, "actions"):
            with pytest.raises(UnsupportedError, match="pip install llguidance"):
                other.answer(prompts[0], grammar=choice)


@pytest.mark.parametrize(
    ("name", "text"),
    [("no.lark", None), ("a.txt", "start: x"), ("a.lark", "start: x"), ("a.json", "[]"), ("a.json", "\udcff"),
     ("large.lark", " " * (1 << 20) + "start: /a/")],
)  # fmt: skip
def test_a_file_that_is_no_grammar_is_one_line(
    exact: Path, tmp_path: Path, name: str, text: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    if text is not None:
        (tmp_path / name).write_bytes(text.encode("utf-8", "surrogateescape"))
    command = ["run", str(exact), "--prompt", "x", "--grammar", str(tmp_path / name)]
    assert main(command) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("edgeglm: --grammar ")
    assert captured.err.count("\n") == 1


def test_the_command_takes_a_file(exact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "yes.lark"
    file.write_text('start: "Yes, it is." | "No."')
    assert main(["run", str(exact), "--prompt", "x", "--grammar", str(file), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["text"] in ("Yes, it is.", "No.")
    assert result["model_passes"] < result["generated_tokens"]
    assert read_grammar(str(file)) == GrammarText(f"--grammar {file}", file.read_text(), is_schema=False)
    marked = file.with_name("marked.lark")  # as some editors of Windows write it
    marked.write_text(file.read_text(), encoding="utf-8-sig")
    assert read_grammar(str(marked)) == GrammarText(f"--grammar {marked}", file.read_text(), is_schema=False)
    with pytest.raises(UsageError, match="is neither"):
        read_grammar("on")
