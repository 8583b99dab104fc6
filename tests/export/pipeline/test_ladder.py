"""The ladder, on a small model, with the recorded errors of what was emitted as its metric."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import onnx_ir as ir

from edgeglm import manifest
from edgeglm.bundle import load_bundle, read_manifest, verify_bundle
from edgeglm.devices.loader import load_profile
from edgeglm.errors import UsageError
from edgeglm.export.pipeline import export as composer
from edgeglm.export.pipeline.export import export
from edgeglm.export.pipeline.ladder import Ladder, Means, spell, workplace
from edgeglm.export.predict.forecast import predict
from edgeglm.export.prepare.entry import describe_module
from edgeglm.export.prepare.preparation import open_export, prepare
from edgeglm.export.prepare.types import Prepared, Request
from edgeglm.export.prove.probes import Passage
from tests.export.tiny import SHAPES, save

LIMIT = 0.15  # more than two of four parts in INT4 err by, and less than three
# Of which the answer is the second half.
SAMPLES = [Passage(tuple(range(start, start + 32)), 16) for start in (40, 140)]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Request:
    """A text model of three layers; tests/cli/test_gate.py climbs with the demo."""
    folder = tmp_path_factory.mktemp("small") / "model"
    save(SHAPES["glm4"], folder)
    return Request(folder, "small", load_profile("cpu"), "int4")


def errors_within(limit: float) -> Callable[[Path], tuple[manifest.Metric, ...]]:
    """The decoder's recorded error, as a metric that may reach `limit`."""

    def measure(folder: Path) -> tuple[manifest.Metric, ...]:
        verify_bundle(load_bundle(folder))
        error = read_manifest(folder).modules[-1].max_relative_error
        assert error is not None
        return (manifest.Metric("error", 4, 0.0, error, error, (error, error), limit, passed=error <= limit),)

    return measure


def climb(work: Path, limit: float, request: Request) -> Ladder:
    means = Means(work, SAMPLES, None, errors_within(limit), lambda _: None, lambda _: None, lambda _: None)
    ladder = Ladder(request, means)
    ladder.climb()
    return ladder


def decoder_error(rung: manifest.Rung) -> float:
    return rung.metrics[0].drop


@dataclass(frozen=True)
class Climbed:
    """A climb, and the bundle that was exported at its end."""

    ladder: Ladder
    folder: Path
    result: manifest.Manifest
    prepared: Prepared


@pytest.fixture(scope="module")
def climbed(tmp_path_factory: pytest.TempPathFactory, small: Request) -> Climbed:
    folder = tmp_path_factory.mktemp("climbed") / "bundle"
    with workplace(folder) as work:
        ladder = climb(work, LIMIT, small)
        made = prepare(open_export(replace(small, precision=ladder.precision)))
        result, _ = export(made, folder, predict(made), lambda _: None, reuse=ladder.reuse, measured=ladder.measured)
    return Climbed(ladder, folder, result, made)


def test_the_most_sensitive_parts_take_a_step_until_it_passes(climbed: Climbed, small: Request) -> None:
    ladder, result = climbed.ladder, climbed.result
    best, (first, whole, *between) = ladder.best, ladder.rungs
    assert best is not None
    assert decoder_error(whole) < decoder_error(best) <= LIMIT < decoder_error(first)
    assert first.bundle_bytes < best.bundle_bytes < whole.bundle_bytes
    # Bisection over four parts, the last of which does not count: it would be the whole.
    assert len(between) == 2
    order = sorted(ladder.sensitivity, key=lambda part: -ladder.sensitivity[part])
    assert len(order) == 4
    prepared = prepare(open_export(replace(small, precision=best.precision)))
    raised = {
        f"{module.choice.name}.{part}"
        for module in prepared.modules
        for part, precision in module.part_precisions.items()
        if precision == "int8-block"
    }
    assert raised == set(order[: len(raised)])
    # One part less was too little.
    failed = [rung for rung in between if not rung.passed]
    assert max(rung.bundle_bytes for rung in failed) < best.bundle_bytes
    assert sorted(path.name for path in climbed.folder.parent.iterdir()) == ["bundle"]
    verify_bundle(load_bundle(climbed.folder))
    report = result.files["report.html"].bytes
    assert result.bundle_bytes - report == best.bundle_bytes == climbed.prepared.bundle_bytes
    assert isinstance(result.measured, manifest.Measured)
    assert result.measured.metrics == best.metrics
    assert result.measured.ladder == tuple(ladder.rungs)
    assert result.measured.sensitivity == ladder.sensitivity


def test_an_entry_describes_the_graph_that_was_written(climbed: Climbed) -> None:
    module = climbed.prepared.modules[1]
    entry = describe_module(module, 0.5, None, (), ())
    graph = ir.load(climbed.folder / entry.file).graph
    assert [tensor.name for tensor in entry.inputs] == [value.name for value in graph.inputs]
    assert [tensor.name for tensor in entry.outputs] == [value.name for value in graph.outputs]
    assert (entry.precision, entry.max_relative_error) == ("mixed", 0.5)
    assert set(entry.parts.values()) == {"int4", "int8-block"}


def test_it_ends_the_same_way_twice_and_as_a_plain_export_of_its_precision(
    climbed: Climbed, small: Request, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with workplace(tmp_path / "again") as work:
        again = climb(work, LIMIT, small)
        made = prepare(open_export(replace(small, precision=again.precision)))
        with monkeypatch.context() as context:
            # All weights are there already, in the bundles of both ends.
            context.setattr(composer, "write", lambda *_: pytest.fail("a weight was encoded again"))
            export(made, tmp_path / "again", predict(made), lambda _: None, reuse=again.reuse)
    assert climbed.ladder.rungs == again.rungs
    assert climbed.ladder.sensitivity == again.sensitivity
    export(made, tmp_path / "plain", predict(made), lambda _: None)
    manifests = [(tmp_path / name / "manifest.json").read_bytes() for name in ("again", "plain")]
    assert manifests[0] == manifests[1]
    # The first one's differs by what was measured, which its report shows.
    files = {name: file for name, file in read_manifest(tmp_path / "plain").files.items() if name != "report.html"}
    assert files.items() <= climbed.result.files.items()


def test_what_passes_at_once_is_left_alone(small: Request, tmp_path: Path) -> None:
    with workplace(tmp_path / "bundle") as work:
        ladder = climb(work, 0.9, small)
        assert len(ladder.rungs) == 1
        assert ladder.precision == "int4"
        assert len(ladder.sensitivity) == 4


def test_where_nothing_passes_all_levels_were_tried(small: Request, tmp_path: Path) -> None:
    with workplace(tmp_path / "deep" / "bundle") as work:
        ladder = climb(work, -1.0, small)
        assert ladder.best is None
        kinds = [spelled.precision for spelled in ladder.rungs]
        assert kinds == [f"embedding=fp16,decoder={kind}" for kind in ("int4", "int8-block", "fp16")]
        assert ladder.nearest == ladder.rungs[-1]
    assert list(tmp_path.iterdir()) == []


def test_the_workplace_is_ones_own(tmp_path: Path) -> None:
    with workplace(tmp_path / "bundle") as work:
        (work / "rung-0").mkdir()
        with pytest.raises(UsageError, match="another export is writing it"), workplace(tmp_path / "bundle"):
            pass
    (tmp_path / "bundle.ladder" / "rung-3.partial").mkdir(parents=True)  # of an export that was killed
    with workplace(tmp_path / "bundle") as work:
        assert list(work.iterdir()) == []
    (tmp_path / "bundle.ladder").mkdir()
    (tmp_path / "bundle.ladder" / "mine").write_text("precious")
    with pytest.raises(UsageError, match="holds what no export wrote"), workplace(tmp_path / "bundle"):
        pass
    assert (tmp_path / "bundle.ladder" / "mine").read_text() == "precious"


def test_precisions_are_spelled_by_what_is_usual_in_a_module() -> None:
    parts = {"embedding": "fp16", "decoder.layer.0": "fp16", "decoder.layer.1": "int4", "decoder.back": "int4"}
    assert spell(parts) == "embedding=fp16,decoder=int4,decoder.layer.0=fp16"
