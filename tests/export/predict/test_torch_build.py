"""Predictions know what a build of torch for GPUs takes."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest

pytest.importorskip("torch")

from edgeglm.devices.loader import load_profile
from edgeglm.export.checkpoint.locate import DEMO
from edgeglm.export.evaluate.original.memory import BASE_BYTES, base_bytes
from edgeglm.export.predict import torch_build
from edgeglm.export.predict.forecast import forecast, predict
from edgeglm.export.predict.torch_build import GPU_BYTES, beyond_cpu_build
from edgeglm.export.prepare.preparation import open_export, prepare
from edgeglm.export.prepare.types import Request


@pytest.fixture(params=["libtorch_cpu.so", "libtorch_cuda.so", "libtorch_hip.so"])
def library(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Yield the largest library of the torch that is found."""
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / request.param).touch()
    spec = ModuleSpec("torch", None, origin=str(tmp_path / "__init__.py"))
    monkeypatch.setattr(torch_build, "find_spec", lambda _: spec)
    beyond_cpu_build.cache_clear()
    yield str(request.param)
    beyond_cpu_build.cache_clear()


def test_a_build_for_gpus_is_in_the_predictions_of_this_machine_alone(library: str) -> None:
    request = Request(DEMO, "demo", load_profile("cpu"))
    more = 0 if library == "libtorch_cpu.so" else GPU_BYTES
    prepared = prepare(open_export(request, headers_only=True))
    kept = predict(prepared).export_peak_rss_bytes
    assert forecast(request).export_peak_rss_bytes == kept + more
    assert base_bytes() == BASE_BYTES + more
    assert kept < 800 << 20


def test_without_torch_nothing_is_added(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_build, "find_spec", lambda _: None)
    beyond_cpu_build.cache_clear()
    assert beyond_cpu_build() == 0
    beyond_cpu_build.cache_clear()
