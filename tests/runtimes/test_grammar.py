"""Answer grammars on the demo's tokenizer: what they take, what they force, and what is no grammar."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest
from tokenizers import normalizers

pytest.importorskip("llguidance")

from edgeglm.actions import ACTIONS, parse_action
from edgeglm.runtimes.core.grammar import Grammar, GrammarError, Vocabulary, schema_source
from edgeglm.runtimes.text.action_grammar import action_grammar
from edgeglm.runtimes.text.sidecars import Sidecars
from edgeglm.runtimes.text.tokenizer import BoundedTokenizer

DEMO = Path(__file__).parents[2] / "export" / "demo"


def tokenizer() -> BoundedTokenizer:
    folder = DEMO / "checkpoint"
    return BoundedTokenizer(Sidecars(folder, frozenset(path.name for path in folder.iterdir())))


TOKENIZER = tokenizer()
TOKENS = TOKENIZER.library.get_vocab()
# Without </answer>, so that answers of both forms go on behind it.
ENDS, SIZE = tuple(TOKENS[name] for name in ("<|endoftext|>", "<|user|>", "<|observation|>")), len(TOKENS)
END = ENDS[0]
WORDS = Vocabulary(TOKENIZER, SIZE, ENDS)
ACTION = Grammar(WORDS, action_grammar(TOKENS))


def walk(grammar: Grammar, tokens: list[int]) -> tuple[bool, int]:
    """Lead a guide along an answer; return whether it is whole, and how many of its tokens were forced."""
    guide, count, place = grammar.begin(), 0, 0
    assert guide is not None
    while place < len(tokens):
        forced, allowed = guide.forced(), guide.allowed()
        if forced != tokens[place : place + len(forced)] or allowed is None or not allowed[tokens[place]]:
            return False, count
        for token in forced or tokens[place : place + 1]:
            if token not in ENDS:
                guide.accept(token)
        count += len(forced)
        place += len(forced) or 1
    return guide.lost is None, count


def test_the_demos_answers_are_all_inside_and_forced_tokens_are_its_own() -> None:
    lines = (DEMO / "data" / "evaluation.jsonl").read_text(encoding="utf-8").splitlines()
    answers = [[*TOKENIZER.encode(json.loads(line)["target"]), END] for line in lines[:300]]
    walks = [walk(ACTION, answer) for answer in answers]
    assert all(whole for whole, _ in walks)
    assert sum(count for _, count in walks) > 0.25 * sum(map(len, answers))


@pytest.mark.parametrize(
    "answer",
    [
        'do(action="Back")',
        'Some thought.\ndo(action="Tap", element=[1000,0])',
        '<think>a</think>\n<answer>\ndo(action="Home")\n</answer>',
        '<think>a</think>do(action="Wait", duration="2 seconds") for it',
        '<think></think><answer>do(action="Wait", duration=2.5)</answer>',
        '<think>do(action="Back")</think>No:<answer>do(action="Home")</answer>',
        'as the prompt thinks</think><answer>do(action="Home")</answer>',
        '<think>not closed<answer>do(action="Home")</answer>',
        '<answer>finish(message="he said "no") so")</answer>',
        '<answer>do(action="Type", text="a\n\\"b\\" do(action="Back")")</answer>',
        '<answer>do(action="Long Press", element=[5,99], message="重要")</answer>',
        'do(action="Back") no, do(action="Home")',
        '返回do(action="Back")',
        'do(action="Back"), then undo it',
    ],
)
def test_every_form_of_an_answer_is_inside(answer: str) -> None:
    assert parse_action(answer) is not None
    assert walk(ACTION, [*TOKENIZER.encode(answer), END])[0]


@pytest.mark.parametrize("kind", ACTIONS)
def test_every_action_of_the_language_is_inside(kind: str) -> None:
    arguments = {
        "Swipe": ", start=[1,2], end=[3,4]",
        "Launch": ', app="Maps"',
        "Call_API": ', instruction="sum up"',
        **dict.fromkeys(("Tap", "Double Tap", "Long Press"), ", element=[1,2]"),
        **dict.fromkeys(("Type", "Type_Name"), ', text="word"'),
    }
    action = 'finish(message="done")' if kind == "finish" else f'do(action="{kind}"{arguments.get(kind, "")})'
    assert walk(ACTION, [*TOKENIZER.encode(f"<think>x</think><answer>{action}</answer>"), END])[0]


@pytest.mark.parametrize(
    ("action", "is_inside"),
    [
        ('do(action="Launch", app="a \\"b\\" c")', True),
        ('do(action="Note", message="a\nb\tc\\\\")', True),
        ('do(action="Launch", app="a "b" c")', False),
        ('do(action="Wait", duration="2 seconds", duration="2 seconds")', False),
        ('do(action="Note", message="a\\xb")', False),
        ('do(action="Call_API", instruction="a\\")', False),
    ],
)
def test_what_the_clients_parser_refuses_is_outside(action: str, is_inside: bool) -> None:
    """Open-AutoGLM escapes line breaks and tabs, and then reads all but Type and finish as Python."""
    try:
        ast.parse(action.replace("\n", "\\n").replace("\t", "\\t"), mode="eval")
    except SyntaxError:
        assert not is_inside
    assert walk(ACTION, [*TOKENIZER.encode(f"<think>x</think><answer>{action}</answer>"), END])[0] == is_inside


@pytest.mark.parametrize(
    "answer",
    [
        "no action",
        '<answer>do(action="Fly")</answer>',
        '<answer>do(action="Tap", element=[1001,1])</answer>',
        "",
        'undo(action="Back")',
        'do(action="Back") or do(action="Home"',
    ],
)
def test_what_has_no_action_does_not_end(answer: str) -> None:
    assert not walk(ACTION, [*TOKENIZER.encode(answer), END])[0]


def test_the_end_token_is_forced_at_the_end_and_may_be_a_tag() -> None:
    answer = TOKENIZER.encode('<think>a</think><answer>do(action="Back")</answer>')
    for ends in (ENDS, (END, TOKENS["</answer>"])):
        guide = Grammar(Vocabulary(TOKENIZER, SIZE, ends), action_grammar(TOKENS)).begin()
        assert guide is not None
        for token in answer[:-1]:
            guide.accept(token)
        allowed = guide.allowed()
        assert allowed is not None
        assert allowed[answer[-1]]
        assert not allowed[END]
        guide.accept(answer[-1])
        assert guide.forced() == [END]


def test_tags_that_are_no_tokens_are_text() -> None:
    for lacking in (("<think>",), ("<answer>", "</answer>"), ("<think>", "</think>", "<answer>", "</answer>")):
        known = {word: token for word, token in TOKENS.items() if word not in lacking}
        grammar = Grammar(WORDS, action_grammar(known))
        assert walk(grammar, [*TOKENIZER.encode('A thought. do(action="Back")'), END])[0]


def test_forced_tokens_are_the_split_that_the_model_would_write() -> None:
    choices = ["Tap the Settings", "Tap the Settingsbar", "Tap them", "Type 12 words", "设置里的声音", "设置里没有"]
    grammar = Grammar(WORDS, "start: " + " | ".join(json.dumps(choice, ensure_ascii=False) for choice in choices))
    for choice in choices:
        assert walk(grammar, TOKENIZER.encode(choice))[0]


def test_a_tokenizer_that_normalizes_has_masks_and_no_forced_tokens() -> None:
    lower = tokenizer()
    lower.library.normalizer = normalizers.Lowercase()
    guide = Grammar(Vocabulary(lower, SIZE, ENDS), 'start: "Tap OK"').begin()
    assert guide is not None
    assert guide.forced() == []
    allowed = guide.allowed()
    assert allowed is not None
    assert 0 < allowed.sum() < 5


def test_vocabularies_that_are_not_of_bytes_are_refused() -> None:
    other = tokenizer()
    state = json.loads(other.library.to_str())
    state["model"]["vocab"]["▁word"] = state["model"]["vocab"].pop(next(reversed(state["model"]["vocab"])))
    state["model"]["merges"] = []
    other.library = type(other.library).from_str(json.dumps(state))
    with pytest.raises(GrammarError, match="not made of bytes"):
        Vocabulary(other, SIZE, ENDS)


@pytest.mark.parametrize(
    "source",
    [
        "",
        "hello",
        "start: x",
        "start: /(/",
        r"start: /[^\s\S]/",
        "start: start",
        "start: <nope>",
        "\0",
        "start: " * 999,
    ],
)
def test_what_is_no_grammar_or_allows_nothing_is_one_line(source: str) -> None:
    with pytest.raises(GrammarError) as error:
        Grammar(WORDS, source)
    assert "\n" not in str(error.value)
    assert 0 < len(str(error.value)) < 400


def deep(levels: int) -> str:
    return '{"type":"array","items":' * levels + '{"type":"integer"}' + "}" * levels


@pytest.mark.parametrize(
    "schema", ["", "[1]", "{", "false", '{"type":"nonsense"}', '{"enum":[]}', '{"$ref":"#"}', deep(500), deep(99_999)]
)
def test_what_is_no_schema_is_one_line(schema: str) -> None:
    with pytest.raises(GrammarError) as error:
        Grammar(WORDS, schema_source(schema))
    assert "\n" not in str(error.value)


def test_an_endless_grammar_and_a_deep_schema_are_followed() -> None:
    guide = Grammar(WORDS, 'start: "a" start').begin()
    assert guide is not None
    assert set(TOKENIZER.library.decode(guide.forced())) <= {"a"}
    guide = Grammar(WORDS, schema_source(deep(30))).begin()
    assert guide is not None
    assert guide.forced() or guide.allowed() is not None


def test_an_answer_that_has_begun_outside_has_no_guide() -> None:
    assert ACTION.begin(TOKENIZER.encode("<think>Tap")) is not None
    assert ACTION.begin(TOKENIZER.encode("<answer>Tap")) is None


def test_what_it_takes_is_what_it_allows() -> None:
    spare = 8  # tokens that the model has beyond the tokenizer's
    grammar = Grammar(Vocabulary(TOKENIZER, SIZE + spare, ENDS), action_grammar(TOKENS))
    answer, others = '<think>重要 a</think><answer>do(action="Tap", element=[5,99])</answer>', range(0, SIZE, 97)
    guide = grammar.begin()
    assert guide is not None
    for token in [*TOKENIZER.encode(answer), END]:
        allowed = guide.allowed()
        assert allowed is not None
        asked = {*others, *range(SIZE, SIZE + spare), token, *ENDS}
        taken = {other for other in asked if guide.takes(other)}
        assert all(allowed[other] for other in taken)
        assert all(other in taken or other in ENDS for other in asked if allowed[other])
        if token != END:
            assert token in taken
            guide.accept(token)
    guide.accept(token=0)
    assert guide.lost
    assert not guide.takes(0)
