"""Tests that an extra of the package is needed for."""

from __future__ import annotations

from importlib.util import find_spec

import pytest


def need_tflite() -> None:
    """Skip without the converter; it is not imported, because this process keeps out what it needs."""
    if find_spec("litert_torch") is None:
        pytest.skip("needs pip install 'edgeglm[tflite]'", allow_module_level=True)
