"""``edgeglm search``: a bundle that passes comes of it, its attempts are remembered, and bad input is one line."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("optuna")

from edgeglm.bundle import read_manifest
from edgeglm.errors import EdgeglmError
from edgeglm.export.api import Progress, SearchRequest, search
from tests.cli.commands import check_failure, run
from tests.cli.test_validate_text import write_text, write_tokenizer
from tests.export.tiny import SHAPES, save
from tests.extras import need_tflite

Capture = pytest.CaptureFixture[str]


def test_a_text_model_is_searched_for_memory(tmp_path: Path, capsys: Capture) -> None:
    """Attempts with figures on few windows, one pruned; another folder goes on from the study, with none again."""
    model, text = tmp_path / "model", tmp_path / "text.txt"
    save(replace(SHAPES["glm4"], layers=1), model)
    write_tokenizer(model / "tokenizer.json")
    write_text(text, 48)
    drop = ["--target", "cpu", "--accuracy-drop", "40%", "--calibration", text, "--equalization", "on,off"]
    limit = ["--limit", 8]
    options = [*drop, *limit, "--prune", "30%", "--for", "memory", "--trials", 3]
    study = ["--study", tmp_path / "study", "--json"]

    status, out, err = run(capsys, "search", model, *options, "-o", tmp_path / "one", *study)
    assert status == 0, err
    ladder = json.loads(out)["ladder"]
    assert [rung.get("options") for rung in ladder] == [None, {"equalization": "off"}, {"model": "pruned-30%"}]
    assert len({rung["precision"] for rung in ladder}) == 1
    assert ladder[2]["bundle_bytes"] < ladder[0]["bundle_bytes"]
    assert all(rung["figures"]["peak_rss_bytes"] > 1e6 for rung in ladder)
    assert any(rung["passed"] for rung in ladder)
    assert {metric["samples"] for rung in ladder for metric in rung["metrics"]} == {8}

    status, out, err = run(capsys, "search", model, *options, "-o", tmp_path / "two", *study)
    assert status == 0, err
    assert json.loads(out)["ladder"] == ladder
    one, two = (read_manifest(tmp_path / name) for name in ("one", "two"))
    assert one.measured == two.measured
    assert [file.sha256 for name, file in one.files.items() if name.startswith("decoder")] == [
        file.sha256 for name, file in two.files.items() if name.startswith("decoder")
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "model",
        "one",
        "study",
        "study.models",
        "text.txt",
        "two",
    ]
    for other in ([*options, "--accuracy-drop", "30%"], [*options, "--limit", 9]):
        done = run(capsys, "search", model, *other, "-o", tmp_path / "three", *study)
        check_failure(done, 2, "is a study of another model, device, limit, goal or version, or of other samples")


def test_a_study_that_cannot_be_used_is_refused_before_any_work(tmp_path: Path) -> None:
    model, text = tmp_path / "model", tmp_path / "text.txt"
    save(replace(SHAPES["glm4"], layers=1), model)
    write_tokenizer(model / "tokenizer.json")
    write_text(text, 48)
    (tmp_path / "words").write_text("no study\n")
    for study, error in {
        "words": "words: is no study; remove it, or name another by --study",
        "model": "model: is a folder; name a file by --study",
        "nowhere/study": "nowhere/study: cannot be written: No such file or directory",
    }.items():
        request = SearchRequest(
            model=str(model), target="cpu", accuracy_drop=0.4, calibration=text, output=tmp_path / "bundle",
            study=tmp_path / study,
        )  # fmt: skip
        stages = list[Progress]()
        with pytest.raises(EdgeglmError) as refused:
            search(request, stages.append)
        assert error in str(refused.value)
        assert stages == []
        assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "text.txt", "words"]


@pytest.mark.slow
def test_a_format_is_searched_for(tmp_path: Path, capsys: Capture) -> None:
    need_tflite()
    model, text = tmp_path / "model", tmp_path / "text.txt"
    save(replace(SHAPES["glm4"], layers=1), model)
    write_tokenizer(model / "tokenizer.json")
    write_text(text, 36)
    options = ["--target", "cpu", "--accuracy-drop", "90%", "--calibration", text, "--formats", "onnx,tflite"]
    status, out, err = run(
        capsys, "search", model, *options, "--for", "memory", "--trials", 2, "-o", tmp_path / "one", "--json"
    )
    assert status == 0, err
    ladder = json.loads(out)["ladder"]
    assert [rung.get("options") for rung in ladder] == [None, {"format": "decoder=tflite"}]
    assert all(rung["figures"]["peak_rss_bytes"] > 1e6 for rung in ladder)
    made, best = read_manifest(tmp_path / "one"), min(ladder, key=lambda rung: rung["figures"]["peak_rss_bytes"])
    (decoder,) = (module for module in made.modules if module.name == "decoder")
    assert decoder.format == ("tflite" if "options" in best else "onnx")
    kept = [made.files[name].bytes for name in made.files if name == "report.html" or name.startswith("assets/")]
    assert made.bundle_bytes - sum(kept) == best["bundle_bytes"]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--target", "cpu", "--accuracy-drop", "1%", "--trials", "0"], "trials"),
        (["--target", "cpu", "--accuracy-drop", "1%", "--for", "speed"], "speed"),
        (["--target", "cpu", "--accuracy-drop", "1%", "--equalization", "on,of"], "'of' is none of on, off"),
        (["--target", "cpu", "--accuracy-drop", "1%", "--equalization", "on,off"], "has nothing to switch off"),
        (["--target", "cpu", "--accuracy-drop", "1%", "--formats", "onnx,tflit"], "'tflit' is none of onnx, tflite"),
        (["model.onnx", "--target", "cpu", "--accuracy-drop", "1%"], "is a graph: a search is of checkpoints"),
    ],
)
def test_what_is_asked_wrong_is_one_line(arguments: list[str], text: str, capsys: Capture) -> None:
    check_failure(run(capsys, "search", *arguments), 2, text)


def test_a_format_that_the_device_does_not_run_is_refused(tmp_path: Path, capsys: Capture) -> None:
    arguments = ["--target", "jetson-orin", "--accuracy-drop", "1%", "--formats", "onnx,tflite", "-o", tmp_path / "one"]
    check_failure(run(capsys, "search", *arguments), 3, "jetson-orin has no LiteRT among its engines")
    assert list(tmp_path.iterdir()) == []
