"""``edgeglm build``: every module of the demo for the GPU is built; what cannot be built is one line."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("tensorrt_rtx", reason="needs pip install 'edgeglm[tensorrt]'")
pytest.importorskip("torch")
pytest.importorskip("transformers")

from edgeglm.errors import UnsupportedError
from edgeglm.runtimes.core.runner import Runner
from edgeglm.runtimes.engines.tensorrt.cuda import Gpu
from tests.bundles import write_bundle
from tests.cli.commands import check_failure, run
from tests.runtimes.demo import SCREEN, ask, demo_bundle

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo for a Jetson, in its own precision."""
    return demo_bundle(tmp_path_factory.mktemp("half") / "bundle", "jetson", "auto")


@pytest.fixture(scope="module", params=["int8", "int4"])
def quantized(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return demo_bundle(tmp_path_factory.mktemp(request.param) / "bundle", "jetson", request.param)


# Of each test, and so set up after the bundles, whose traces are kept in the user's own cache.
@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def no_gpu() -> None:
    try:
        Gpu().close()
    except UnsupportedError:
        return
    pytest.skip("there is a GPU here")


def build(bundle: Path, capsys: Capture) -> None:
    """Build twice; every engine is there, and says what it is and by what it was proven."""
    status, table, err = run(capsys, "build", bundle, "--sm", "86")
    assert (status, err) == (0, "")
    status, out, _ = run(capsys, "build", bundle, "--sm", "86", "--json")
    result = json.loads(out)
    assert [module["name"] for module in result["modules"]] == ["vision", "decoder"]
    for module in result["modules"]:
        assert not module["fresh"]
        assert module["sm"] == 86
        assert module["built_by"].startswith("tensorrt-rtx 1.")
        assert Path(module["file"]).stat().st_size == module["bytes"] > 1_000_000
        assert module["precision"] in table
    assert result["bundle"] == str(bundle)
    assert result["proof"] in table
    assert result["proof"].startswith("built for SM86 by tensorrt-rtx 1.")
    assert result["proof"].endswith(": graph, types, shapes and profiles proven, not executed")


@pytest.mark.slow
def test_every_module_of_the_demo_in_half_precision(half: Path, capsys: Capture) -> None:
    build(half, capsys)


@pytest.mark.slow
def test_what_a_bundle_carries_builds_without_an_installed_edgeglm(half: Path, tmp_path: Path) -> None:
    """The builder's process finds its code in run.pyz, as the runner did."""
    code = (
        "import sys, edgeglm; from pathlib import Path; from edgeglm.bundle import load_bundle; "
        "from edgeglm.runtimes.engines.tensorrt.cache import engine_for; "
        "from edgeglm.runtimes.engines.tensorrt.library import load_library; bundle = load_bundle(Path(sys.argv[1])); "
        "print(engine_for(bundle, bundle.module('vision'), load_library(['tensorrt_rtx']), 86).fresh, edgeglm.__file__)"
    )
    environment = {**os.environ, "PYTHONPATH": str(half / "run.pyz")}
    command = [sys.executable, "-c", code, str(half)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == f"True {half}/run.pyz/edgeglm/__init__.py\n"


@pytest.mark.slow
def test_every_module_of_the_demo_quantized(quantized: Path, capsys: Capture) -> None:
    build(quantized, capsys)


def test_without_a_gpu_it_says_what_can_be_done(half: Path, no_gpu: None, capsys: Capture) -> None:
    why = r"GPU: there is none here: .*; run it on NVIDIA Jetson AGX Orin 64GB; edgeglm build --sm 86 proves"
    check_failure(run(capsys, "build", half), 3, why)


def test_a_gpu_that_it_builds_nothing_for(half: Path, capsys: Capture) -> None:
    why = "compute capability 87: tensorrt-rtx 1.* supports only 75, 80, 86, .*; give one of these with --sm"
    check_failure(run(capsys, "build", half, "--sm", "87"), 3, why)


def test_a_bundle_without_modules_for_a_gpu(tmp_path: Path, capsys: Capture) -> None:
    write_bundle(tmp_path)
    why = "was exported for cpu, and has no module for TensorRT; .*--target jetson"
    check_failure(run(capsys, "build", tmp_path, "--sm", "86"), 2, why)


def test_a_damaged_bundle_is_not_built(half: Path, tmp_path: Path, capsys: Capture) -> None:
    bundle = shutil.copytree(half, tmp_path / "bundle")
    weights = bundle / "decoder/weights.bin"
    data = bytearray(weights.read_bytes())
    data[5000] ^= 1
    weights.write_bytes(data)
    check_failure(run(capsys, "build", bundle, "--sm", "86"), 6, "decoder/weights.bin: is damaged")


def test_without_a_gpu_the_runner_says_which_engine_ran_it(half: Path, no_gpu: None) -> None:
    answer = ask(half, "Select OK", SCREEN)
    assert {module.engine for module in answer.modules} == {"ort"}
    assert answer.action is not None
    with Runner(half) as runner:
        assert {module.engine for module in runner.bundle.manifest.modules} == {None, "tensorrt"}
