"""One exact bundle of the demo for all of the runner's tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.extras import need_tflite


@pytest.fixture(scope="session")
def exact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo in fp32, which answers as transformers does."""
    demo = pytest.importorskip("tests.runtimes.demo", reason="exports, which needs torch")
    folder: Path = demo.demo_bundle(tmp_path_factory.mktemp("exact") / "bundle", "cpu", "fp32")
    return folder


@pytest.fixture(scope="session")
def exact_tflite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same as TFLite, but for a vision tower in INT8."""
    need_tflite()
    demo = pytest.importorskip("tests.runtimes.demo", reason="exports, which needs torch")
    folder: Path = demo.demo_bundle(
        tmp_path_factory.mktemp("tflite") / "bundle", "cpu", "decoder=fp32,vision=int8", "tflite"
    )
    return folder
