"""The self-test of a user's own model: a sentence to repeat, with what the original finds the likeliest."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from edgeglm.bundle import load_bundle
from edgeglm.devices.loader import load_profile
from edgeglm.export.demo.agent import Agent
from edgeglm.export.locate import DEMO
from edgeglm.export.pipeline.export import export
from edgeglm.export.pipeline.forecast import predict
from edgeglm.export.pipeline.prepare import open_export, prepare
from edgeglm.export.pipeline.prepared import Request
from edgeglm.export.pipeline.self_test import _likeliest
from edgeglm.runtimes.runner import Runner
from edgeglm.runtimes.self_test import FILE, read_self_test, run_self_test


def make(folder: Path, *, context: int | None = None, carry_test: bool = True) -> tuple[str, ...]:
    """Export the demo as if it were somebody's own model, and return the notes."""
    prepared = prepare(open_export(Request(DEMO, "own", load_profile("cpu"), "fp32", context)))
    _, notes = export(prepared, folder, predict(prepared), lambda _: None, carry_test=carry_test)
    return notes


def test_the_likeliest_tokens_are_those_of_transformers(tmp_path: Path) -> None:
    assert make(tmp_path / "own") == ()
    test = read_self_test(load_bundle(tmp_path / "own"))
    model = Agent.load(DEMO).model
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
