"""``edgeglm export --accuracy-drop``: from a precision that loses too much to a bundle that passes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from safetensors.torch import load_file, save_file

from edgeglm.bundle import read_manifest
from edgeglm.cli.gate import describe_ladder, ladder_table
from edgeglm.export.calibrate import learn
from edgeglm.export.checkpoint.locate import DEMO
from edgeglm.export.pipeline.gate import brief
from edgeglm.export.samples.shipped import DATA
from edgeglm.manifest import Measured, Metric, Rung
from tests.cli.commands import check_failure, left_of, run
from tests.export.outliers import inject_outliers

Capture = pytest.CaptureFixture[str]
# Of few screens nothing less is sure; INT4 loses more than that of a model with outliers.
LIMIT = "60%"
METRICS = ["action_type", "step_success", "tap_hit", "median_tap_error"]


def metric(name: str, drop: float, high: float, limit: float) -> Metric:
    return Metric(name, 100, 0.9, 0.9 - drop, drop, (-high, high), limit, passed=high <= limit)


RUNGS = (
    Rung("vision=int4,decoder=int4", 1 << 20, passed=False, refused="decoder: its output is 1.1 away"),
    Rung(
        "vision=int4,decoder=int4,decoder.layer.0=fp16,decoder.back=fp16",
        3 << 19,
        passed=False,
        metrics=(metric("tap_hit", 0.01, 0.03, 0.02), metric("median_tap_error", 1.25, 2.0, 20.0)),
    ),
    Rung(
        "vision=int4,decoder=fp16",
        2 << 20,
        passed=True,
        metrics=(metric("tap_hit", -0.01, 0.0, 0.02), metric("median_tap_error", 0.0, 2.0, 20.0)),
    ),
)


def test_the_table_has_a_row_for_each_rung() -> None:
    assert list(ladder_table(RUNGS)) == [
        "PRECISION                           BUNDLE   tap_hit DROP  median_tap_error DROP  VERDICT",
        "vision=int4, decoder=int4           1.00MiB  -             -                      refused",
        "vision=int4, decoder=int4 (2 fp16)  1.50MiB  1.00%         1.2                    unclear",
        "vision=int4, decoder=fp16           2.00MiB  -1.00%        0.0                    pass",
    ]
    assert brief("auto") == "auto"
    described = describe_ladder(RUNGS)
    assert [list(rung) for rung in described[1:]] == [["metrics", "refused", "precision", "bundle_bytes", "passed"]] * 2
    assert described[0]["refused"] == "decoder: its output is 1.1 away"


def few(file: Path, count: int) -> None:
    """The first `count` of the held-out screens, with their pictures beside the file."""
    file.write_text("".join((DATA / "evaluation.jsonl").read_text().splitlines(keepends=True)[:count]))
    (file.parent / "evaluation").mkdir()
    for number in range(count):
        picture = f"evaluation/{number:04d}.webp"
        (file.parent / picture).write_bytes((DATA / picture).read_bytes())


@pytest.fixture(scope="module")
def outliers(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The demo with outlier channels, and the screens on which both tests measure it."""
    folder = tmp_path_factory.mktemp("outliers")
    model, data = folder / "model", folder / "few.jsonl"
    model.mkdir()
    for file in DEMO.iterdir():
        (model / file.name).write_bytes(file.read_bytes())
    state = {name: value.float() for name, value in load_file(DEMO / "model.safetensors").items()}
    save_file(inject_outliers(state, channels=96), model / "model.safetensors", {"format": "pt"})
    few(data, 8)
    return model, data


@pytest.mark.slow
def test_outliers_that_move_into_the_weights_leave_int4_as_it_is(
    outliers: tuple[Path, Path], tmp_path: Path, capsys: Capture
) -> None:
    """Few screens, and so a generous limit; docs/benchmarks.md has all of them and 2%."""
    target = tmp_path / "bundle"
    model, data = outliers
    common = ["--target", "cpu", "--precision", "int4", "--calibration", data, "-o", target, "--json"]
    status, out, _ = run(capsys, "export", model, *common, "--accuracy-drop", LIMIT)
    assert status == 0
    (rung,) = json.loads(out)["ladder"]
    assert rung["passed"] is True
    assert {module.precision for module in read_manifest(target).modules} == {"fp16", "int4"}


@pytest.mark.slow
def test_outliers_spoil_int4_and_a_mixed_bundle_comes_of_it(
    outliers: tuple[Path, Path], tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without factors, as where no value can be rescaled."""
    monkeypatch.setattr(learn, "find_pairs", lambda graph: iter(()))
    target = tmp_path / "bundle"
    model, data = outliers
    common = ["--target", "cpu", "--precision", "int4", "--calibration", data, "-o", target, "--json"]
    status, out, _ = run(capsys, "export", model, *common, "--accuracy-drop", LIMIT)
    assert status == 0
    result = json.loads(out)
    first, *others = result["ladder"]
    assert first["passed"] is False
    assert [rung["passed"] for rung in others].count(True) >= 1
    best = min((rung for rung in others if rung["passed"]), key=lambda rung: rung["bundle_bytes"])
    assert [metric["name"] for metric in best["metrics"]] == METRICS
    made_last = [target / "report.html", *(target / "assets").iterdir()]  # of what was measured
    assert result["bundle_bytes"] - sum(file.stat().st_size for file in made_last) == best["bundle_bytes"]
    made = read_manifest(target)
    assert {module.precision for module in made.modules} & {"mixed", "int8-block"}
    assert isinstance(made.measured, Measured)
    assert made.measured.metrics == tuple(made.measured.ladder[result["ladder"].index(best)].metrics)
    assert left_of(target) == ["bundle"]
    arguments = ["--accuracy-drop", LIMIT, "--reference", model, "--data", data]
    assert run(capsys, "validate", target, *arguments)[0] == 0


def test_a_budget_without_room_to_measure_is_refused_before_work_starts(tmp_path: Path, capsys: Capture) -> None:
    arguments = ["export", "--target", "cpu", "-o", tmp_path / "bundle", "--max-ram", "800MiB"]
    done = run(capsys, *arguments, "--accuracy-drop", "2%")
    check_failure(done, 5, "800MiB is too little to measure edgeglm-demo; it takes at least 907MiB; or leave")
    assert left_of(tmp_path / "bundle") == []


@pytest.mark.slow
def test_where_nothing_passes_there_is_no_bundle(tmp_path: Path, capsys: Capture) -> None:
    target, data = tmp_path / "bundle", tmp_path / "few.jsonl"
    few(data, 4)  # on which no drop of 1% is sure
    arguments = ["export", DEMO, "--target", "cpu", "--precision", "fp16", "--calibration", data, "-o", target]
    status, out, err = run(capsys, *arguments, "--accuracy-drop", "1%", "--json")
    assert status == 4
    result = json.loads(out)
    assert result["bundle"] is None
    assert [rung["passed"] for rung in result["ladder"]] == [False]
    assert "no precision passes; the best, embedding=fp16, vision=fp16, decoder=fp16, drops " in err
    assert " samples leave " in err
    assert err.endswith(
        " open even where nothing differs; measure on more samples, or allow more with --accuracy-drop\n"
    )
    assert left_of(target) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["evaluation", "few.jsonl"]
