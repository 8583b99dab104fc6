"""The wheel, built through the sdist as a release is: everything of the package, and nothing else."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

pytest.importorskip("build.env", reason="builds the wheel with the build tool of the dev extra")

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
ROOMS = ("export", "runtimes", "devices")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    folder = tmp_path_factory.mktemp("dist")
    build = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    done = subprocess.run(build, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return zipfile.ZipFile(next(folder.glob("*.whl")))


def test_the_wheel_holds_one_package_and_its_metadata(wheel: zipfile.ZipFile) -> None:
    roots = {name.split("/")[0] for name in wheel.namelist()}
    assert roots == {"edgeglm", f"edgeglm-{metadata.version('edgeglm')}.dist-info"}


def test_the_package_is_exactly_its_code_and_its_data(wheel: zipfile.ZipFile) -> None:
    expected = {f"edgeglm/{name}" for name in source_files(ROOT / "edgeglm", "py.typed", "*.py", "cli/**/*.py")}
    for room in ROOMS:
        expected |= {f"edgeglm/{room}/{name}" for name in source_files(ROOT / room, "**/*.py")}
    data = source_files(ROOT / "devices", "profiles/*.toml", "operators/*.toml")
    expected |= {f"edgeglm/devices/{name}" for name in data}
    data = source_files(ROOT / "export/demo", "checkpoint/*", "data/**/*")
    expected |= {f"edgeglm/export/demo/{name}" for name in data}
    report = "export/evaluate/report"
    expected |= {f"edgeglm/{report}/{name}" for name in source_files(ROOT / report, "*.jinja")}
    actual = {name for name in wheel.namelist() if name.startswith("edgeglm/")}
    assert sorted(actual - expected) == []
    assert sorted(expected - actual) == []


def test_the_licence_travels_with_the_wheel(wheel: zipfile.ZipFile) -> None:
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in wheel.namelist())


def source_files(folder: Path, *patterns: str) -> set[str]:
    """Return the files under a folder that match any of the patterns, relative to it."""
    files = {path for pattern in patterns for path in folder.glob(pattern) if path.is_file()}
    return {path.relative_to(folder).as_posix() for path in files}
