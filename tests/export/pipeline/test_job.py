"""The memory of a job: what a calibration may take of it, and in which order."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("torch")

from edgeglm.devices.loader import load_profile
from edgeglm.export.checkpoint.locate import DEMO
from edgeglm.export.pipeline import job as module
from edgeglm.export.pipeline.job import Job
from edgeglm.export.predict.learning import learning_bytes, worker_bytes
from edgeglm.export.prepare.preparation import open_export
from edgeglm.export.prepare.types import Request
from edgeglm.export.prove.probes import Passage

WORKER = 1 << 30
PLENTY = 1 << 40


def test_the_worker_is_left_out_before_a_covariance_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "worker_bytes", lambda opened: WORKER)
    request = Request(DEMO, "demo", load_profile("cpu"), "int4")
    opened = open_export(request)

    def job(budget: int, samples: int = 1) -> Job:
        return Job(request, tmp_path, [Passage((1, 2), 1)] * samples, [], None, budget)

    widest, need = job(PLENTY)._widest(opened), job(PLENTY).peak(opened)
    assert job(PLENTY)._worker(opened) == WORKER
    tight = job(need - 1)
    assert tight._worker(opened) == 0
    assert tight._widest(opened) == widest
    assert tight.peak(opened) < need - (WORKER >> 1)
    assert job(PLENTY, samples=0)._worker(opened) == 0


def test_the_worker_is_predicted_while_it_learns() -> None:
    opened = open_export(Request(DEMO, "demo", load_profile("cpu"), "int4"))
    assert learning_bytes(opened, 256, WORKER) > WORKER
    assert worker_bytes(opened) == 0  # the demo is too narrow
