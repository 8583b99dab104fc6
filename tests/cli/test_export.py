"""``edgeglm export``: the bundle, what is printed of it, and Ctrl-C."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from edgeglm.bundle import read_manifest
from tests.cli.commands import end, left_of, run, start
from tests.export.tiny import SHAPES, build, save

Capture = pytest.CaptureFixture[str]
NO_TOKENIZER = "has no tokenizer.json: its bundle can be measured, but takes no text\n"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoints") / "tiny"
    save(SHAPES["glm4"], folder)
    return folder


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "out" / "bundle"


def check_bundle(target: Path, capsys: Capture, *arguments: object) -> dict[str, Any]:
    """Export; the bundle is whole, and inspect shows it as export does."""
    status, out, _ = run(capsys, "export", *arguments, "-o", target, "--json")
    assert status == 0
    result: dict[str, Any] = json.loads(out)
    assert run(capsys, "verify", target)[0] == 0
    assert "not measured" in (target / "report.html").read_text(encoding="utf-8")
    shown = json.loads(run(capsys, "inspect", target, "--json")[1])
    for key in ("bundle", "target", "modules", "bundle_bytes"):
        assert result[key] == shown[key]
    return result


MODULE_KEYS = ["name", "precision", "format", "file", "bytes", "max_relative_error"]
KEYS = [
    "bundle", "target", "modules", "bundle_bytes", "peak_rss_bytes", "predicted_peak_rss_bytes", "seconds"
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "profile", "precisions"),
    [
        ("cpu", "cpu", ["fp16", "int8", "int8"]),
        ("jetson", "jetson-orin", ["fp16", "fp16", "fp16"]),
    ],
)
def test_the_demo_for_every_kind_of_device(
    name: str, profile: str, precisions: list[str], target: Path, capsys: Capture
) -> None:
    result = check_bundle(target, capsys, "--target", name)
    assert list(result) == KEYS
    assert result["bundle"] == str(target)
    assert result["target"] == profile
    assert [list(module) for module in result["modules"]] == [MODULE_KEYS] * 3
    assert [module["name"] for module in result["modules"]] == ["embedding", "vision", "decoder"]
    assert [module["precision"] for module in result["modules"]] == precisions
    # One of the probes asks for what is not on its screen, and there INT8 moves the first token's logits most.
    assert all(0 <= module["max_relative_error"] < 0.5 for module in result["modules"])
    files = sum(path.stat().st_size for path in target.rglob("*") if path.is_file())
    assert result["bundle_bytes"] == files - (target / "manifest.json").stat().st_size
    assert result["peak_rss_bytes"] > 50e6
    assert result["predicted_peak_rss_bytes"] > 50e6
    assert result["seconds"] > 0


def test_a_second_export_replaces_the_bundle(tiny: Path, target: Path, capsys: Capture) -> None:
    for precision in ("int8", "int4"):
        result = check_bundle(target, capsys, tiny, "--target", "cpu", "--precision", precision)
        assert [module["precision"] for module in result["modules"]] == ["fp16", precision]
        assert left_of(target) == ["bundle"]


def test_without_an_output_the_name_is_of_model_and_target(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.chdir(tmp_path)
    status, out, err = run(capsys, "export", tiny, "--target", "cpu")
    assert (status, err) == (0, f"note: {tiny} {NO_TOKENIZER}")
    assert "bundle  tiny-cpu, " in out
    assert out.partition("\n\n")[0] in run(capsys, "inspect", "tiny-cpu")[1]
    assert run(capsys, "verify", "tiny-cpu")[0] == 0


def test_shards_give_the_bytes_of_one_file(tiny: Path, target: Path, tmp_path: Path, capsys: Capture) -> None:
    build(SHAPES["glm4"]).save_pretrained(tmp_path / "tiny", max_shard_size="100KB")
    assert len(list((tmp_path / "tiny").glob("*.safetensors"))) > 2
    check_bundle(target, capsys, tiny, "--target", "cpu")
    whole = read_manifest(target)
    check_bundle(target, capsys, tmp_path / "tiny", "--target", "cpu")
    sharded = read_manifest(target)
    assert sharded.files == whole.files
    assert sharded.provenance.weights_sha256 == whole.provenance.weights_sha256


def test_a_tied_head_is_written_from_the_table(target: Path, tmp_path: Path, capsys: Capture) -> None:
    save(SHAPES["glm-tied-one-head"], tmp_path / "tied")
    result = check_bundle(target, capsys, tmp_path / "tied", "--target", "cpu", "--precision", "fp32")
    assert all(module["max_relative_error"] < 1e-5 for module in result["modules"])


def test_a_rounded_picture_is_said_on_stderr(target: Path, capsys: Capture) -> None:
    status, out, err = run(capsys, "export", "--target", "cpu", "--image-size", "170x340", "-o", target, "--json")
    assert status == 0
    assert json.loads(out)["target"] == "cpu"
    assert err == "note: --image-size 170x340 is not whole in merged patches of 28: 168x336\n"
    assert read_manifest(target).provenance.options["image_size"] == "170x340"


def wait_for(condition: Callable[[], object], process: subprocess.Popen[str]) -> None:
    while not condition():
        assert process.poll() is None, process.communicate()
        time.sleep(0.0005)


def interrupt(process: subprocess.Popen[str]) -> None:
    """As an impatient user does: again while the first one is still being obeyed."""
    for _ in range(5):
        process.send_signal(signal.SIGINT)
        time.sleep(0.005)
    assert end(process) == (130, "", "edgeglm: interrupted\n")


def children(cache: Path) -> list[str]:
    """The processes that trace for whoever has this cache folder."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended
            command, environment = ((folder / name).read_bytes() for name in ("cmdline", "environ"))
            if b"edgeglm.export.trace.trace_worker" in command and os.fsencode(cache) in environment:
                found.append(folder.name)
    return found


def test_ctrl_c_while_it_traces_ends_the_child(tiny: Path, target: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    environment = {**os.environ, "XDG_CACHE_HOME": str(cache)}
    process = start("export", tiny, "--target", "cpu", "-o", target, env=environment)
    wait_for(lambda: children(cache), process)
    interrupt(process)
    deadline = time.monotonic() + 2
    while children(cache) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert children(cache) == []
    assert list((cache / "edgeglm" / "traces").iterdir()) == []
    assert left_of(target) == []


def test_ctrl_c_while_it_writes_lets_the_next_run_finish(target: Path, capsys: Capture) -> None:
    export = ["export", "--target", "cpu", "--precision", "fp32", "-o", target]
    assert run(capsys, *export)[0] == 0  # from here on, its blocks are traced
    shutil.rmtree(target)
    process = start(*export)
    wait_for(lambda: left_of(target) == ["bundle.partial"], process)
    interrupt(process)
    assert not target.exists()
    assert run(capsys, *export)[0] == 0
    assert left_of(target) == ["bundle"]
    assert run(capsys, "verify", target)[0] == 0
