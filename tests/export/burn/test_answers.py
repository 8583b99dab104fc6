"""Which answers of a device count as this machine's."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from msgspec.structs import replace

pytest.importorskip("torch")

from edgeglm.actions import parse_action
from edgeglm.bundle import Bundle
from edgeglm.cli.burn_test import _judge, _lines, _summary
from edgeglm.errors import AccuracyError, BudgetError
from edgeglm.export.burn.answers import NEAR, Pair, Question, Reply, is_exact, questions
from edgeglm.export.burn.qemu import Qemu
from edgeglm.export.burn.ssh import Ssh
from edgeglm.export.samples.screenshots import Expected
from edgeglm.runtimes.program import _action
from tests.bundles import DECODER, EMBEDDING, VISION, sample_manifest

BUNDLE = Bundle(Path("bundle"), sample_manifest())
FIRST, TEXT = '<answer>do(action="Tap", element=[302,465])</answer>', "no action"
FAR = 302 + NEAR + 5


def bundle_of(precision: str, **parts: str) -> Bundle:
    decoder = replace(DECODER, precision=precision, parts=parts)
    return Bundle(Path("bundle"), replace(sample_manifest(), modules=(EMBEDDING, decoder)))


def reply(text: str) -> Reply:
    figures = {"time_to_first_token_ms": 1.0, "decode_tokens_per_second": 1.0, "peak_rss_bytes": 1}
    return Reply(json.loads(json.dumps({"action": _action(parse_action(text)), "text": text, **figures})))


def pair(there: str, here: str = FIRST, *, exact: bool = False, question: Question | None = None) -> Pair:
    (first,) = questions(BUNDLE, 1)
    return Pair(question or first, reply(here), reply(there), exact)


def tap(x: int, y: int = 465, action: str = "Tap") -> str:
    return f'<answer>do(action="{action}", element=[{x},{y}])</answer>'


def test_the_first_question_is_of_a_target_and_not_near_its_edges() -> None:
    (question,) = questions(BUNDLE, 1)
    assert BUNDLE.manifest.model.vision == VISION
    assert question.picture is not None
    assert question.expected.box is not None
    assert question.expected.box[0] < FAR < question.expected.box[2]


@pytest.mark.parametrize(
    ("there", "same", "alike"),
    [
        (FIRST, True, True),
        ("<think>Another thought.</think>" + FIRST, True, True),
        (tap(FAR), False, True),  # in the target
        (tap(302, 465 + NEAR + 10), False, False),  # below it
        (tap(302, 495), False, False),
        (tap(302, 465, "Long Press"), False, False),
        ('do(action="Back")', False, False),
        (TEXT, False, False),
    ],
)
def test_a_tap_may_lie_elsewhere_in_its_target(there: str, same: bool, alike: bool) -> None:
    answered = pair(there)
    assert (answered.same, answered.alike) == (same, alike)
    # In fp32 nothing but the same will do.
    exact = pair(there, exact=True)
    assert (exact.same, exact.alike) == (same, same)


def test_a_tap_without_its_target_may_be_a_little_off_this_machines() -> None:
    """As of a model that the demo's screens mean nothing to, or one that answers without a picture."""
    (first,) = questions(BUNDLE, 1)
    blind = Question(first.prompt, None, first.expected)
    assert pair(tap(900 + NEAR), tap(900)).alike
    assert not pair(tap(901 + NEAR), tap(900)).alike
    assert not pair(tap(FAR), question=blind).alike
    assert pair(TEXT, TEXT).alike
    assert not pair("another text", TEXT).alike


def test_what_is_alike_is_said_and_passes() -> None:
    device, pairs = Qemu([]), [pair(FIRST), pair(tap(FAR))]
    _judge(BUNDLE.folder, device, 100, pairs)
    lines = list(_lines(device, "cpu", 100, pairs, None))
    assert [line.split()[7] for line in lines[1:3]] == ["yes", "alike"]
    said = "answers  1 of 2 as on this machine, 1 alike: a tap in its target, or within 2% of the screen"
    assert said in lines
    summary = _summary(BUNDLE.folder, BUNDLE, device, 100, pairs, None)
    assert summary["passed"] is True
    answers = summary["answers"]
    assert isinstance(answers, list)
    assert [(answer["same"], answer["alike"]) for answer in answers] == [(True, True), (False, True)]
    pairs.append(pair(tap(FAR), exact=True))
    assert _summary(BUNDLE.folder, BUNDLE, device, 100, pairs, None)["passed"] is False
    with pytest.raises(AccuracyError, match=rf"0000\.webp by Tap element=\[{FAR}, 465\] on .*, and by Tap "):
        _judge(BUNDLE.folder, device, 100, pairs)


@pytest.mark.parametrize(
    ("precision", "parts", "exact"),
    [
        ("fp32", {}, True),
        ("int4", {}, False),
        ("int8", {}, False),
        ("fp16", {}, False),
        ("mixed", {"front": "fp32", "back": "int8"}, False),
        ("another", {}, False),
    ],
)
def test_a_bundle_in_fp32_is_exact(precision: str, parts: dict[str, str], exact: bool) -> None:
    """Whatever its table is stored in: rows are read, not computed."""
    assert is_exact(bundle_of(precision, **parts)) is exact


def text_pair(there: str, peak: int) -> Pair:
    here, device = (
        Reply({"action": None, "text": text, "peak_rss_bytes": size}) for text, size in ((TEXT, 1), (there, peak))
    )
    return Pair(Question("Hello", None, Expected(TEXT)), here, device, exact=False)


def test_a_peak_above_the_limit_fails_but_for_an_emulator() -> None:
    board, emulated = Ssh("board", "python3"), Qemu([])
    _judge(BUNDLE.folder, board, 100, [text_pair(TEXT, 100)])
    _judge(BUNDLE.folder, emulated, 100, [text_pair(TEXT, 101)])
    with pytest.raises(BudgetError, match="ssh board: took 101B, more than 100B; "):
        _judge(BUNDLE.folder, board, 100, [text_pair(TEXT, 100), text_pair(TEXT, 101)])
    with pytest.raises(AccuracyError, match="answers prompt 2 by another on ssh board, and by no action here"):
        _judge(BUNDLE.folder, board, 100, [text_pair(TEXT, 101), text_pair("another", 101)])
