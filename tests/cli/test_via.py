"""``--via``: a search that measures on a board over a real ssh, and boards that cannot be."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("optuna")

from edgeglm.cli.via import ViaCommand
from tests.cli.commands import check_failure, run
from tests.cli.test_validate_text import write_text, write_tokenizer
from tests.export.burn.sshd import HOST, missing, serve
from tests.export.tiny import SHAPES, save

Capture = pytest.CaptureFixture[str]


@pytest.mark.parametrize(
    ("arguments", "printed"),
    [
        (["--via", "ssh", "pi@board", "bundle"], "ssh pi@board bundle"),
        (["bundle", "--via=ssh", "pi@board"], "ssh pi@board bundle"),
        (["--via", "adb", "bundle"], "adb bundle"),
        (["--via", "ssh", "--", "bundle"], "ssh bundle"),
    ],
)
def test_a_host_belongs_to_its_option(arguments: list[str], printed: str) -> None:
    @click.command(cls=ViaCommand)
    @click.argument("bundle")
    @click.option("--via")
    def command(bundle: str, via: str) -> None:
        click.echo(f"{via} {bundle}")

    assert CliRunner().invoke(command, arguments).output == f"{printed}\n"


def test_an_answer_is_measured_on_a_board(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    if why := missing():
        pytest.skip(why)
    model, text = tmp_path / "model", tmp_path / "text.txt"
    save(SHAPES["glm4"], model)
    write_tokenizer(model / "tokenizer.json")
    write_text(text, 36)
    options = ["--target", "rpi5", "--accuracy-drop", "60%", "--calibration", text, "--for", "latency", "--trials", 2]
    (tmp_path / "sshd").mkdir()
    with serve(tmp_path / "sshd") as board:
        monkeypatch.setenv("PATH", board.path)
        via = ["--via", "ssh", HOST, "--python", sys.executable]
        status, out, err = run(capsys, "search", model, *options, *via, "-o", tmp_path / "one", "--json")
        assert status == 0, err
        assert list((board.home / ".cache/edgeglm").glob("burn.*")) == []
    rungs = json.loads(out)["ladder"]
    assert len(rungs) == 2
    assert all(rung["figures"]["answer_ms"] > 0 for rung in rungs)
    here = ["search", model, *options, "-o", tmp_path / "two", "--study", tmp_path / "one.study"]
    check_failure(run(capsys, *here), 2, "is a study of another model, device, limit, goal or version, or of other")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--for", "latency", "--via", "qemu"], "is emulated: its times and its memory are not those of a board"),
        (["--for", "latency", "--via", "usb"], "--via usb: is not a backend"),
        (["--for", "latency", "--via", "ssh"], "--via ssh: names no host"),
        (["--via", "ssh", "board"], "--via: has nothing to measure: a size is known; add --for latency"),
        (["--for", "memory", "--via", "adb", "--cluster", "local"], "--via: is one board"),
    ],
)
def test_a_board_that_cannot_be_is_one_line(arguments: list[str], text: str, tmp_path: Path, capsys: Capture) -> None:
    options = ["--target", "cpu", "--accuracy-drop", "1%", "-o", tmp_path / "bundle"]
    check_failure(run(capsys, "search", *options, *arguments), 2, text)
    assert list(tmp_path.iterdir()) == []


def test_a_board_that_is_not_reached_is_told_before_anything_is_made(tmp_path: Path, capsys: Capture) -> None:
    options = ["--target", "cpu", "--accuracy-drop", "1%", "--for", "latency", "-o", tmp_path / "bundle"]
    done = run(capsys, "search", *options, "--via", "ssh", "nobody@127.0.0.1")
    check_failure(done, 3, "ssh nobody@127.0.0.1: cannot be reached")
    assert list(tmp_path.iterdir()) == []
