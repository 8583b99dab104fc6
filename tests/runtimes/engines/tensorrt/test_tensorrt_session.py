"""The session, as far as a machine without a GPU comes: to the first call of the driver."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("tensorrt_rtx", reason="needs pip install 'edgeglm[tensorrt]'")
pytest.importorskip("onnx")

from edgeglm.errors import UnsupportedError
from edgeglm.runtimes.engines.tensorrt.cache import engine_for
from edgeglm.runtimes.engines.tensorrt.cuda import Gpu
from edgeglm.runtimes.engines.tensorrt.engine import LoadedEngine
from edgeglm.runtimes.engines.tensorrt.library import load_library
from tests.runtimes.engines.tensorrt.graphs import matmul, write_bundle


@pytest.fixture(autouse=True)
def _no_gpu() -> None:
    try:
        Gpu().close()
    except UnsupportedError:
        return
    pytest.skip("there is a GPU here")


def test_without_a_driver_there_is_no_gpu() -> None:
    with pytest.raises(UnsupportedError, match=r"^GPU: there is none here: .*libcuda.so.1 cannot be loaded; run this"):
        Gpu()


def test_an_engine_is_not_loaded_without_a_driver(tmp_path: Path, cache: Path) -> None:
    bundle = write_bundle(tmp_path / "bundle", matmul())
    module, library = bundle.module("decoder"), load_library(["tensorrt_rtx"])
    assert module is not None
    path = engine_for(bundle, module, library, 86).path
    unopened = object.__new__(Gpu)  # not used before TensorRT itself asks the driver
    with pytest.raises(
        UnsupportedError, match=r"cannot load it: CUDA driver version is insufficient for .*; delete it"
    ):
        LoadedEngine(unopened, library, path)


def test_what_is_no_engine_is_said(tmp_path: Path) -> None:
    (tmp_path / "engine.plan").write_bytes(b"no engine" * 100)
    with pytest.raises(UnsupportedError, match="cannot load it: Serialization assertion"):
        LoadedEngine(object.__new__(Gpu), load_library(["tensorrt_rtx"]), tmp_path / "engine.plan")
