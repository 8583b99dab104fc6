"""`edgeglm.export.api` as a program of the user's own calls it, and as a worker does."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("onnx")

from edgeglm.bundle import load_bundle, verify_bundle
from edgeglm.errors import BudgetError, DamagedFileError, UnsupportedError, UsageError
from edgeglm.export import api
from edgeglm.export.api import BuildRequest, ExportRequest, PlanRequest, Progress, ValidateRequest
from edgeglm.export.api_worker import answer
from edgeglm.export.pipeline.comparison import compare
from edgeglm.export.pipeline.job import NothingPassed
from edgeglm.manifest import Manifest
from edgeglm.worker import Worker


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> api.ExportResult:
    folder = tmp_path_factory.mktemp("api") / "bundle"
    return api.export(ExportRequest(target="cpu", precision="int8", output=folder))


def test_a_bundle_is_written_planned_and_validated(exported: api.ExportResult) -> None:
    verify_bundle(load_bundle(exported.bundle))
    assert isinstance(exported.manifest, Manifest)
    assert {module.precision for module in exported.manifest.modules} == {"int8"}
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
    request = PlanRequest(target="cpu", precision="decoder=int4,vision=fp16", context=512, image_sizes=((504, 1008),))
    assert planner.run(request, "plan") == answer(request, lambda done: None) == api.plan(request)
    validator = Worker("edgeglm.export.api_worker", api.ValidateResult, "the validator")
    measured = ValidateRequest(bundle=exported.bundle, limit=2, accuracy_drop=1.0)
    here, there = api.validate(measured), validator.run(measured, "validate")
    assert (list(there.metrics), there.ran, there.samples) == (list(here.metrics), here.ran, here.samples)


def test_progress_is_told_with_the_memory(tmp_path: Path) -> None:
    told: list[Progress] = []
    request = ExportRequest(target="cpu", precision="int4", output=tmp_path / "bundle", accuracy_drop=1.0)
    result = api.export(request, told.append)
    stages = list(dict.fromkeys(progress.stage for progress in told))
    assert stages[0].startswith("tracing ")
    assert {"vision", "decoder", "measuring", "tried"} <= set(stages)
    assert all(progress.rss_bytes > 0 for progress in told)
    (rung,) = [progress.rung for progress in told if progress.rung]
    assert [rung] == list(result.rungs)
    assert rung.passed


def test_nothing_that_passes_is_an_error_with_its_rungs(tmp_path: Path) -> None:
    request = ExportRequest(target="cpu", format="tflite", precision="int4", output=tmp_path / "b", accuracy_drop=-1.0)
    with pytest.raises(NothingPassed) as caught:
        api.export(request)
    assert [rung.passed for rung in caught.value.rungs] == [False]
    assert list(tmp_path.iterdir()) == []


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
        (ExportRequest(target="cpu", max_ram=1 << 20), BudgetError, "--max-ram: 1.0 MiB is too little"),
        (ExportRequest(target="cpu", format="tflite", precision="fp16"), UnsupportedError, "--format tflite: "),
        (ExportRequest(target="cpu", model="a.onnx", context=5), UsageError, "--context: is for checkpoints"),
        (ExportRequest(target="cpu", model="nowhere"), UsageError, "nowhere: "),
        (PlanRequest(target="cpu", precision="int9"), UsageError, "precision 'int9': there is no such scheme"),
        (ValidateRequest(bundle=Path("nowhere")), UsageError, "nowhere: is not a bundle"),
        (BuildRequest(bundle=Path("nowhere"), sm=86), UsageError, "nowhere: is not a bundle"),
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


def test_a_damaged_bundle_is_not_measured(exported: api.ExportResult, tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_bytes((exported.bundle / "manifest.json").read_bytes())
    with pytest.raises(DamagedFileError):
        compare(ValidateRequest(bundle=tmp_path), budget=1 << 40, show=lambda progress: None)
