"""``ulimit -f 0``: nothing can be written, and every command works or is one line that names the reason."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

demo = pytest.importorskip("tests.runtimes.demo", reason="exports, which needs torch")

COMMANDS: dict[str, tuple[list[str], int, str]] = {
    "doctor": (["doctor"], 0, ""),
    "verify": (["verify", "BUNDLE"], 0, ""),
    "run": (["run", "BUNDLE", "--prompt", "Open Maps", "--max-new-tokens", "2"], 0, ""),
    "low-rss": (
        ["run", "BUNDLE", "--prompt", "Open Maps", "--low-rss"],
        5,
        "edgeglm: --low-rss: the packed weights cannot be written in ",
    ),
    "plan": (["plan", "--target", "cpu"], 5, "edgeglm: TMPDIR: no folder for temporary files can be written; "),
    "export": (["export", "--target", "cpu", "-o", "OUT"], 5, "edgeglm: TMPDIR: no folder for temporary files can"),
}
EXPORTS = ("plan", "export")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return demo.demo_bundle(tmp_path_factory.mktemp("limits") / "bundle", "cpu", "fp32")  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", COMMANDS)
def test_it_works_or_says_why(name: str, bundle: Path, tmp_path: Path) -> None:
    if name in EXPORTS:
        pytest.importorskip("torch", reason="exports, which needs torch")
    arguments, code, said = COMMANDS[name]
    names = {"BUNDLE": str(bundle), "OUT": str(tmp_path / "out")}
    done = subprocess.run(
        [sys.executable, "-m", "edgeglm", *(names.get(argument, argument) for argument in arguments)],
        env=os.environ | {"XDG_CACHE_HOME": str(tmp_path / "cache")},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0)),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr[: len(said)]) == (code, said)
    assert done.stderr.count("\n") == (code != 0)
    assert not (tmp_path / "out").exists()
