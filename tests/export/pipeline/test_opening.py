"""What the user asks for, opened: the bundle's name, the options, and the trial that travels to a worker."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("optuna")

from edgeglm.devices.loader import load_profile
from edgeglm.errors import UsageError
from edgeglm.export.pipeline.opening import open_job
from edgeglm.export.prepare.asked import asked
from edgeglm.export.requests import ExportRequest, SearchRequest
from edgeglm.export.samples.shipped import DEMO_DATA
from edgeglm.export.search.knobs import Setting
from edgeglm.export.search.trials import Trial

BUDGET = 2 << 30


def test_a_bundle_is_named_by_model_and_device() -> None:
    job = open_job(ExportRequest(target="cpu", precision="int4", format="tflite"), BUDGET)
    assert job.folder == Path("edgeglm-demo-cpu")
    assert (job.request.precision, job.request.format, job.request.shipped) == ("int4", "tflite", DEMO_DATA)
    assert (job.gate, list(job.samples), job.budget) == (None, [], BUDGET)


def test_a_drop_has_a_gate_within_the_budget() -> None:
    gate = open_job(ExportRequest(target="cpu", accuracy_drop=0.03), BUDGET).gate
    assert gate
    assert (gate.request.accuracy_drop, gate.request.max_ram) == (0.03, BUDGET)


def test_equalization_is_switched_off_where_there_is_one() -> None:
    calibration = DEMO_DATA.calibration
    job = open_job(ExportRequest(target="cpu", calibration=calibration, equalization="off"), BUDGET)
    assert not job.request.equalizes
    with pytest.raises(UsageError, match="has nothing to switch off"):
        open_job(ExportRequest(target="cpu", equalization="off"), BUDGET)


def test_a_folder_that_holds_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("")
    with pytest.raises(UsageError):
        open_job(ExportRequest(target="cpu", output=tmp_path), BUDGET)


def test_sizes_are_kept_once(tmp_path: Path) -> None:
    request = ExportRequest(target="cpu", model="other", image_sizes=((28, 56), (56, 28), (28, 56)))
    made = asked(request, load_profile("cpu"), tmp_path, "other")
    assert made.image_sizes == ((28, 56), (56, 28))
    assert made.shipped is None


def test_a_trial_travels_whole() -> None:
    search = SearchRequest(target="cpu", accuracy_drop=0.01, prefixes=(Path("one"),), equalizations=("on", "off"))
    trial = Trial(search, Setting("decoder=int4", "off"), BUDGET)
    back = pickle.loads(pickle.dumps(trial))
    assert back == trial
    assert hash(back.search) == hash(trial.search)  # which a worker's calibration is kept by
