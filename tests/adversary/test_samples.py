"""Samples that say anything: read, or refused in a line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="the host side's Python")

from edgeglm.export.samples.screenshots import read_samples
from edgeglm.export.samples.shipped import DATA
from tests.adversary.fuzzer import Fuzzer
from tests.adversary.mutate import mutate


def test_any_sample_is_taken_or_refused(tmp_path: Path, fuzz: Callable[[str], Fuzzer]) -> None:
    fuzzer, file = fuzz("a value of a sample replaced"), tmp_path / "samples.jsonl"
    lines = (DATA / "evaluation.jsonl").read_text(encoding="utf-8").splitlines()[:8]
    records = [json.loads(line) for line in lines]
    for record in records:
        (url,) = [part["image_url"]["url"] for part in record["messages"][-1]["content"] if "image_url" in part]
        (tmp_path / url).parent.mkdir(exist_ok=True)
        shutil.copy(DATA / url, tmp_path / url)
    for _ in fuzzer.attempts():
        record, what = mutate(fuzzer.random.choice(records), fuzzer.random)
        file.write_text(json.dumps(record) + "\n", encoding="utf-8")
        fuzzer.call(what, lambda: list(read_samples(file)))
