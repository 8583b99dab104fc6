"""`edgeglm.export.api` as a program of the user's own calls it, and as a worker does."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("onnx")

from edgeglm.bundle import load_bundle, verify_bundle
from edgeglm.errors import AccuracyError, BudgetError, DamagedFileError, UnsupportedError, UsageError
from edgeglm.export import api
from edgeglm.export.api import BuildRequest, ExportRequest, PlanRequest, Progress, ValidateRequest
from edgeglm.export.api_worker import answer
from edgeglm.export.evaluate.comparison import compare
from edgeglm.export.pipeline.job import NothingPassed
from edgeglm.manifest import Manifest, Rung
from edgeglm.worker import Worker

TOLD: list[Progress] = []


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> api.ExportResult:
    folder = tmp_path_factory.mktemp("api") / "bundle"
    return api.export(ExportRequest(target="cpu", precision="int8", output=folder), TOLD.append)


def test_progress_is_told_with_the_memory(exported: api.ExportResult) -> None:
    stages = list(dict.fromkeys(progress.stage for progress in TOLD))
    assert stages[0].startswith("tracing edgeglm-demo for cpu")
    assert stages[-2:] == ["vision", "decoder"]
    assert all(0 < progress.rss_bytes <= exported.peak_rss_bytes for progress in TOLD)
    assert [progress.done for progress in TOLD if progress.total_bytes][-1] == 1.0


def test_a_bundle_is_written_planned_and_validated(exported: api.ExportResult) -> None:
    verify_bundle(load_bundle(exported.bundle))
    assert isinstance(exported.manifest, Manifest)
    assert {module.name: module.precision for module in exported.manifest.modules}["decoder"] == "int8"
    assert 0 < exported.peak_rss_bytes <= exported.max_ram
    planned = api.plan(PlanRequest(target="cpu", precision="int8"))
    assert planned.fits
    assert planned.chosen.precision == "int8"
    stages: list[Progress] = []
    found = api.validate(ValidateRequest(bundle=exported.bundle, limit=2, accuracy_drop=1.0), stages.append)
    assert (found.bundle, found.samples, found.streamed, found.unproven) == (exported.bundle, 2, None, None)
    assert {metric.name for metric in found.metrics} >= {"step_success", "tap_hit"}
    assert [stage.done for stage in stages if stage.stage == "the bundle answers"][-1] == 1.0


def test_a_worker_gives_what_the_function_gives(exported: api.ExportResult) -> None:
    planner = Worker("edgeglm.export.api_worker", api.Forecast, "the planner")
    request = PlanRequest(target="cpu", precision="decoder=int4,vision=fp16", context=512, image_sizes=((196, 392),))
    planned = api.plan(request)  # first, because a worker's own tracing process takes longer than ours
    assert planner.run(request, "plan") == answer(request, lambda done: None) == planned
    validator = Worker("edgeglm.export.api_worker", api.ValidateResult, "the validator")
    measured = ValidateRequest(bundle=exported.bundle, limit=2, accuracy_drop=1.0)
    here, there = api.validate(measured), validator.run(measured, "validate")
    assert (list(there.metrics), there.ran, there.samples) == (list(here.metrics), here.ran, here.samples)


CALLS: dict[type, Callable[[Any], object]] = {
    ExportRequest: api.export,
    PlanRequest: api.plan,
    ValidateRequest: api.validate,
    BuildRequest: api.build,
}


@pytest.mark.parametrize(
    ("asked", "error", "line"),
    [
        (ExportRequest(target="cpu5"), UsageError, "cpu5: is not a device profile; "),
        (ExportRequest(target="cpu", max_ram=1 << 20), BudgetError, "--max-ram: 1MiB is too little"),
        (
            ExportRequest(target="cpu", format="tflite", precision="fp16"),
            UnsupportedError,
            "--format tflite with ",
        ),
        (ExportRequest(target="cpu", model="a.onnx", context=5), UsageError, "--context: is only for checkpoints"),
        (ExportRequest(target="cpu", model="nowhere"), UsageError, "nowhere: "),
        (PlanRequest(target="cpu", precision="int9"), UsageError, "precision 'int9': there is no such scheme"),
        (ValidateRequest(bundle=Path("nowhere")), UsageError, "nowhere: cannot be read: No such file"),
        (BuildRequest(bundle=Path("nowhere"), sm=86), UsageError, "nowhere: cannot be read: No such file"),
    ],
)
def test_what_a_user_may_get_wrong_is_the_same_error_in_a_worker(
    asked: object, error: type[Exception], line: str
) -> None:
    with pytest.raises(error, match=f"^{re.escape(line)}") as here:
        CALLS[type(asked)](asked)
    with pytest.raises(error) as there:
        Worker("edgeglm.export.api_worker", dict, "it").run(asked, "it")
    # How much is available differs from moment to moment.
    assert re.sub(r"\d+", "N", str(there.value)) == re.sub(r"\d+", "N", str(here.value))


def test_an_error_of_the_ladder_has_its_parts_and_its_rungs() -> None:
    rung = Rung("int4", 1 << 20, passed=False, refused="decoder: its output is 1.1 away")
    error = NothingPassed(AccuracyError("bundle", "no precision passes", "allow more"), [rung])
    assert (str(error), error.exit_code, error.rungs) == ("bundle: no precision passes; allow more", 4, (rung,))


def test_a_damaged_bundle_is_not_measured(exported: api.ExportResult, tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_bytes((exported.bundle / "manifest.json").read_bytes())
    with pytest.raises(DamagedFileError):
        compare(ValidateRequest(bundle=tmp_path), budget=1 << 40, show=lambda progress: None)
