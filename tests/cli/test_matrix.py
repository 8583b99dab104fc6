"""``edgeglm matrix``: cells that work and cells that do not, resumed, within a budget, interrupted."""

from __future__ import annotations

import json
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from edgeglm.export.checkpoint.locate import DEMO
from tests.cli.commands import check_failure, end, run, start

Capture = pytest.CaptureFixture[str]
STAGES = ("exported", "compiled", "executed", "validated")


def outcomes(page: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(page.with_suffix(".json").read_text())["outcomes"]
    return found


@pytest.mark.slow
def test_a_cell_is_exported_executed_and_measured_once(tmp_path: Path, capsys: Capture) -> None:
    page = tmp_path / "compatibility.md"
    arguments: list[object] = [
        "matrix",
        "--targets",
        "cpu,jetson-xavier",
        "--precisions",
        "int8",
        "--formats",
        "onnx",
        "--limit",
        8,
    ]
    arguments += ["-o", page]
    status, out, err = run(capsys, *arguments, "--json")
    assert (status, err) == (0, "")
    works, refused = json.loads(out)["cells"]
    assert (works["model"], works["target"], works["precision"], works["format"]) == (
        "edgeglm-demo",
        "cpu",
        "int8",
        "onnx",
    )
    assert [works[stage]["state"] for stage in STAGES] == ["done", "not needed", "done", "done"]
    assert works["executed"]["text"].startswith("onnxruntime ")
    assert {part["name"]: part["precision"] for part in works["modules"]} == {
        "embedding": "fp16",
        "vision": "int8",
        "decoder": "int8",
    }
    assert [works["samples"], *(metric["name"] for metric in works["metrics"])][:3] == [
        8,
        "action_type",
        "step_success",
    ]
    assert 7 << 20 < works["bundle_bytes"] < 10 << 20
    assert works["peak_rss_bytes"] > 50 << 20
    assert [refused[stage]["state"] for stage in STAGES] == ["failed", *["not run"] * 3]
    assert refused["exported"]["text"].startswith("jetson-xavier: decoder: its GPU takes no attention")
    assert "| cpu | int8 | onnx | yes |" in page.read_text()
    # A second time nothing is tried; another cell does not lose what is known, nor does it take it for its own.
    before = page.with_suffix(".json").read_bytes()
    status, out, err = run(capsys, *arguments)
    assert (status, err) == (0, "")
    assert "cells     2, 2 of them known" in out.splitlines()
    assert page.with_suffix(".json").read_bytes() == before
    others = ["--targets", "jetson-xavier", "--precisions", "int8", "--formats", "onnx", "--limit", 4]
    out = run(capsys, "matrix", *others, "-o", page)[1]
    assert "cells     1, 0 of them known" in out.splitlines()
    assert [(outcome["target"], outcome["exported"]["state"]) for outcome in outcomes(page)] == [
        ("cpu", "done"),
        ("jetson-xavier", "failed"),
    ]


def test_a_model_that_changed_is_tried_again_and_without_room_nothing_is(tmp_path: Path, capsys: Capture) -> None:
    model, page = tmp_path / "model", tmp_path / "page.md"
    shutil.copytree(DEMO, model)
    arguments: list[object] = [
        "matrix",
        "--models",
        model,
        "--targets",
        "cpu",
        "--precisions",
        "int8",
        "--formats",
        "onnx",
    ]
    arguments += ["-o", page]
    assert run(capsys, *arguments, "--max-ram", "100MiB", "--json")[0] == 0
    (outcome,) = outcomes(page)
    assert (outcome["model"], outcome.get("finished", False)) == ("model", False)
    assert outcome["exported"]["state"] == "not run"
    assert outcome["exported"]["text"].endswith(", and --max-ram is 100MiB")
    # A checkpoint that cannot be exported is a finished cell, until the checkpoint is another one.
    (model / "model.safetensors").write_bytes(b"short")
    out = run(capsys, *arguments)[1]
    assert "exported  1 failed" in out.splitlines()
    assert "cells     1, 1 of them known" in run(capsys, *arguments)[1].splitlines()
    (model / "model.safetensors").write_bytes(b"shorter")
    assert "cells     1, 0 of them known" in run(capsys, *arguments)[1].splitlines()


def test_an_interrupt_leaves_a_page_and_no_process(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    process = start("matrix", "--targets", "cpu,rpi5", "--precisions", "fp16,int8", "--formats", "onnx", "-o", page)
    deadline = time.monotonic() + 60
    while not (children := children_of(process.pid)) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    status, out, err = end(process)
    assert (status, out, err.splitlines()[-1]) == (130, "", "edgeglm: interrupted")
    assert children
    assert not any(Path(f"/proc/{child}").exists() for child in children)
    assert page.read_text().count("| **not run** | **not run** | **not run** |") == 4
    assert not any(outcome.get("finished", False) for outcome in outcomes(page))


def children_of(pid: int) -> list[int]:
    try:
        return list(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))
    except OSError:
        return []


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["--targets", "rpi6"], "rpi6: is not a device profile; did you mean rpi5"),
        (["--precisions", "int9"], "precision 'int9': there is no such scheme"),
        (["--precisions", "decodr=int4"], "'decodr' is not a module"),
        (["--formats", "gguf"], "--formats gguf: is not a format; choose one of "),
        (["--models", ","], "--models ',': names nothing; name one, or leave the option out"),
        (["--targets", ""], "--targets '': names nothing"),
        (["--models", "nowhere"], "nowhere: cannot be read; give a checkpoint"),
        (["--data", "nowhere.txt"], "nowhere.txt: cannot be read"),
        (["-o", "nowhere/page.md"], "nowhere/page.md: its folder is not there"),
        (["-o", "/proc/page.md"], "/proc/page.json: cannot be written: No such file or directory; give a folder on"),
        (["-o", "page.json"], "page.json: is the name of what is kept beside the page"),
        (["--max-ram", "much"], "--max-ram much: is not a size"),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else "",
)
def test_what_a_user_may_get_wrong(arguments: list[str], why: str, capsys: Capture) -> None:
    check_failure(run(capsys, "matrix", *arguments), 2, why)
    assert not Path("page.json").exists()


@pytest.mark.slow
def test_a_module_for_tensorrt_is_built_where_there_is_no_gpu(tmp_path: Path, capsys: Capture) -> None:
    pytest.importorskip("tensorrt_rtx", reason="needs pip install 'edgeglm[tensorrt]'")
    arguments = ["matrix", "--targets", "jetson", "--precisions", "fp16", "--formats", "onnx", "--limit", 4]
    status, out, _ = run(capsys, *arguments, "-o", tmp_path / "page.md", "--json")
    assert status == 0
    (cell,) = json.loads(out)["cells"]
    assert (cell["target"], cell["compiled"]["state"]) == ("jetson-orin", "done")
    assert cell["compiled"]["text"].startswith("tensorrt-rtx ")
    assert cell["executed"]["text"].startswith("onnxruntime ")
