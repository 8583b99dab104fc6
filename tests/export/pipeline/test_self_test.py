"""The self-test of a user's own model: its samples or sentences, with what the original finds the likeliest."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from datetime import date
from pathlib import Path

import msgspec
import numpy as np
import pytest

torch = pytest.importorskip("torch")

from edgeglm.bundle import load_bundle
from edgeglm.devices.loader import load_profile
from edgeglm.export.checkpoint.locate import DEMO
from edgeglm.export.demo.evaluate import in_clients_form
from edgeglm.export.demo.prompts import client_prompt
from edgeglm.export.evaluate.original.whole import WholeOriginal
from edgeglm.export.pipeline.export import export
from edgeglm.export.pipeline.self_test import _likeliest, _webp
from edgeglm.export.predict.forecast import predict
from edgeglm.export.prepare.preparation import open_export, prepare
from edgeglm.export.prepare.types import Request
from edgeglm.export.prove.probes import Example
from edgeglm.export.samples.screenshots import read_samples
from edgeglm.export.samples.shipped import DATA
from edgeglm.runtimes.core.runner import Runner
from edgeglm.runtimes.core.self_test import FILE, SelfTest, read_self_test, run_self_test
from edgeglm.runtimes.inputs.image import open_picture
from tests.cli.commands import run
from tests.cli.test_validate_text import WORDS, write_tokenizer
from tests.export.tiny import SHAPES, save

Capture = pytest.CaptureFixture[str]


def make(
    folder: Path,
    *,
    context: int | None = None,
    carry_test: bool = True,
    held_out: Sequence[Example] = (),
    precision: str = "fp32",
) -> tuple[str, ...]:
    """Export the demo as if it were somebody's own model, and return the notes."""
    prepared = prepare(open_export(Request(DEMO, "own", load_profile("cpu"), precision, context)))
    export_ = (prepared, folder, predict(prepared), lambda _: None)
    _, notes = export(*export_, carry_test=carry_test, held_out=held_out)
    return notes


def test_the_likeliest_tokens_are_those_of_transformers(tmp_path: Path) -> None:
    assert make(tmp_path / "own") == ()
    test = read_self_test(load_bundle(tmp_path / "own"))
    model = WholeOriginal.load(DEMO).model
    with Runner(tmp_path / "own") as runner:
        for probe in test.probes:
            prompt = runner.prompt([{"role": "user", "content": probe.prompt}]).tokens
            tokens = torch.tensor([[*prompt, *probe.tokens]])
            with torch.inference_mode():
                logits = model(input_ids=tokens, mm_token_type_ids=torch.zeros_like(tokens)).logits[0]
            wanted = logits[-1 - len(probe.tokens) : -1].argmax(-1).tolist()
            sure = [pair for *pair, surely in zip(wanted, probe.likeliest, probe.sure, strict=True) if surely]
            assert sure
            assert all(one == other for one, other in sure)
        verdict = run_self_test(runner)
    assert verdict.passed
    assert verdict.agreement == 1.0
    assert make(tmp_path / "again") == ()
    assert (tmp_path / "again" / FILE).read_bytes() == (tmp_path / "own" / FILE).read_bytes()


def test_without_room_for_the_sentence_there_is_none_and_a_note(tmp_path: Path) -> None:
    (note,) = make(tmp_path / "short", context=16)
    assert note.startswith("no self-test: ")
    assert not (tmp_path / "short/assets").exists()
    assert make(tmp_path / "rung", carry_test=False) == ()
    assert not (tmp_path / "rung/assets").exists()


def test_sure_is_what_the_recorded_error_cannot_turn() -> None:
    logits = np.array([[3.0, 2.0, -2.0, -3.0], [3.0, 2.9, -2.0, -3.0]], np.float32)
    assert _likeliest(logits, 1e-6) == ((0, 0), (True, False))
    assert _likeliest(logits, 0.2) == ((0, 0), (False, False))


SHORT = list(read_samples(DATA / "evaluation.jsonl", 4))
CLIENTS = in_clients_form(SHORT, client_prompt("en", date(2026, 1, 1)))
SCREENS = [SHORT[0], CLIENTS[1], SHORT[2], CLIENTS[3]]


def test_screens_are_judged_as_transformers_does(tmp_path: Path) -> None:
    assert make(tmp_path / "own", held_out=SCREENS, precision="int8") == ()
    bundle = load_bundle(tmp_path / "own")
    test, agent = read_self_test(bundle), WholeOriginal.load(DEMO)
    assert [probe.before for probe in test.probes] == [sample.before for sample in SCREENS]
    for sample, probe in zip(SCREENS, test.probes, strict=True):
        # The demo's last tag is an end token: a device that has written it is done.
        assert agent.tokenizer.decode(list(probe.tokens)) == sample.expected.response.removesuffix("</answer>")
        assert any(probe.sure)
        assert probe.image is not None
        inputs = agent.encode([open_picture(bundle.path(probe.image))], [sample.messages])
        answer = torch.tensor([probe.tokens])
        more = {"input_ids": answer, "attention_mask": answer * 0 + 1, "mm_token_type_ids": answer * 0}
        inputs.update({name: torch.cat([inputs[name], end], 1) for name, end in more.items()})
        with torch.inference_mode():
            logits = agent.model(**inputs).logits[0, -1 - len(probe.tokens) : -1]
        pairs = zip(logits.argmax(-1).tolist(), probe.likeliest, probe.sure, strict=True)
        assert all(one == other for one, other, surely in pairs if surely)
    assert sum(file.stat().st_size for file in (tmp_path / "own/assets").iterdir()) <= 200_000
    with Runner(tmp_path / "own") as runner:
        verdict = run_self_test(runner)
    assert verdict.passed


def test_a_screen_without_room_gives_way_to_the_sentences(tmp_path: Path) -> None:
    long = replace(SCREENS[0], before=(("user", "a " * 9000), ("assistant", "b")))
    assert make(tmp_path / "own", held_out=[long]) == ()
    test = read_self_test(load_bundle(tmp_path / "own"))
    assert {probe.image for probe in test.probes} == {None}
    assert [file.name for file in (tmp_path / "own/assets").iterdir()] == ["self-test.json"]


def test_a_picture_takes_a_worse_quality_before_it_is_left_out() -> None:
    picture = SCREENS[0].image
    best = _webp(picture, 1 << 20)
    assert best
    worse = _webp(picture, len(best) - 1)
    assert worse
    assert len(worse) < len(best)
    assert _webp(picture, 100) is None


@pytest.mark.parametrize("lines", [10, 40], ids=["all calibrate", "more than calibrate"])
def test_of_a_text_the_end_is_asked(tmp_path: Path, capsys: Capture, lines: int) -> None:
    """Windows are of 126 bytes behind the tokenizer's two; four are behind the 32 that calibrate, or none."""
    save(SHAPES["glm4"], tmp_path / "model")
    write_tokenizer(tmp_path / "model/tokenizer.json")
    content = "".join(f"{number:03d} {' '.join(WORDS * 3)}"[:125] + "\n" for number in range(lines))
    text = tmp_path / "text.txt"
    text.write_text(content)
    options = ["--target", "cpu", "--precision", "fp32", "--calibration", text, "-o", tmp_path / "own"]
    assert run(capsys, "export", tmp_path / "model", *options)[0] == 0
    test = msgspec.json.decode((tmp_path / "own" / FILE).read_bytes(), type=SelfTest)
    first = 32 if lines == 40 else 6
    windows = range(first, first + 4)
    assert [probe.prompt for probe in test.probes] == [content[126 * each : 126 * each + 110] for each in windows]
    status, out, _ = run(capsys, "run", tmp_path / "own", "--self-test", "--json")
    verdict = json.loads(out)
    assert (status, verdict["passed"], verdict["agreement"]) == (0, True, 1.0)
    assert sum(probe["sure_tokens"] for probe in verdict["probes"]) > 0
