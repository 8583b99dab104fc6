"""Answers to screens: bounded in memory on both sides, and those of the original kept."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from msgspec.structs import replace

from edgeglm.bundle import Bundle, load_bundle
from edgeglm.cli.main import main
from edgeglm.errors import BudgetError
from edgeglm.export.demo.samples import DATA, Sample, read_samples
from edgeglm.export.locate import DEMO
from edgeglm.export.validation import answers
from edgeglm.export.validation.answers import artifact_answers, reference_answers

TOO_MANY = 10**15  # parameters, which no machine holds


@pytest.fixture(scope="module")
def samples() -> list[Sample]:
    return list(read_samples(DATA / "evaluation.jsonl", 5))


def test_an_original_beyond_memory_is_refused_before_it_is_loaded(
    samples: list[Sample], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(BudgetError, match=r"take it whole in fp32, 3637\.98TiB, and .* are available") as refused:
        reference_answers(DEMO, TOO_MANY, samples)
    assert refused.value.exit_code == 5
    # Once they are known, nothing is loaded; other samples are not known.
    known = reference_answers(DEMO, 1, samples)
    assert reference_answers(DEMO, TOO_MANY, samples) == known
    with pytest.raises(BudgetError):
        reference_answers(DEMO, TOO_MANY, samples[:4])
    # What is damaged is computed again.
    (file,) = (tmp_path / "edgeglm" / "answers").iterdir()
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(BudgetError):
        reference_answers(DEMO, TOO_MANY, samples)


def test_a_bundle_answers_in_groups_as_at_once(
    samples: list[Sample], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "bundle"
    assert main(["export", "--target", "cpu", "--precision", "fp32", "-o", str(target)]) == 0
    bundle = load_bundle(target)
    together = artifact_answers(bundle, samples)
    monkeypatch.setattr(answers, "FEATURE_BYTES", 1)
    assert artifact_answers(bundle, samples) == together
    assert len(set(together)) == len(samples)
    before = (("system", "You work a phone."), ("user", "Open Maps"), ("assistant", 'do(action="Launch", app="Maps")'))
    chats = [dataclasses.replace(sample, before=before) for sample in samples]
    answered = artifact_answers(bundle, chats)
    assert answered == reference_answers(DEMO, 1, chats)
    assert answered != together
    short = replace(bundle.manifest, model=replace(bundle.manifest.model, max_positions=128))
    with pytest.raises(BudgetError, match=r"take \d+ tokens, and it has room for 128; export it with --context"):
        artifact_answers(Bundle(target, short), samples)
