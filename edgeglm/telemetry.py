"""Keeps the libraries that edgeglm uses from reporting about the device.

ONNX Runtime, from 1.29 on, looks up a collector's address, and keeps a device id and a store of events in the cache
folder. It reads its environment once, when it is loaded: a program that imports it before edgeglm has to set the
variable itself.
"""

from __future__ import annotations

import os

# ONNX Runtime's variable, and the Hugging Face hub client's.
SWITCHES = {"ORT_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}


def disable_telemetry() -> None:
    """Turn it off in this process and in those that it starts; to be called before an engine is imported."""
    os.environ.update(SWITCHES)


def telemetry_is_off() -> bool:
    """Tell whether each library that reports on its own is told not to."""
    return all(os.environ.get(name) == value for name, value in SWITCHES.items())
