"""The one place that imports TensorRT: the ``tensorrt`` of a device, or ``tensorrt_rtx``, which builds without a GPU.

Both have the interface of TensorRT 10 and 11; where they differ, `edgeglm.runtimes.engines.tensorrt.builder` says so.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from edgeglm.errors import UnsupportedError

# In the order of preference; the distribution is what pip calls the module.
DISTRIBUTIONS = {"tensorrt": "tensorrt", "tensorrt_rtx": "tensorrt-rtx"}
OLDEST = 10  # tensorrt's; before it, networks were not strongly typed
INSTALL = "on a Jetson, apt install python3-libnvinfer; elsewhere, pip install 'edgeglm[tensorrt]'"

# What TensorRT says beside the reason, or instead of one.
NOISE = re.compile(r"cudaError|^false$|^Invalid Node - |^While parsing node |^--- |^Node name: |^\[\d+\]")
CUDA_ERROR = re.compile(r"\(cudaError \d+: ([^)]*)\)")
REASONS = (
    re.compile(r"Error Code \d+: [^(]*\((.*?)\.?\s+In \w+ at /.*\)"),
    re.compile(r"Assertion failed: .*?: (.*)"),
    re.compile(r"\w+\.cpp:\d+: (?:ERROR: )?(.*)"),
)


@dataclass(frozen=True)
class Library:
    """An imported TensorRT."""

    name: str
    module: ModuleType

    @property
    def version(self) -> str:
        """The library's own version."""
        return str(self.module.__version__)

    @property
    def title(self) -> str:
        """The distribution and version, for reports."""
        return f"{DISTRIBUTIONS[self.name]} {self.version}"

    @property
    def compute_capabilities(self) -> list[int]:
        """The compute capabilities that TensorRT for RTX builds for; empty for TensorRT, which builds for its GPU."""
        names = dir(getattr(self.module, "ComputeCapability", None)) if self.name == "tensorrt_rtx" else []
        return sorted(int(name[2:]) for name in names if name.startswith("SM") and name[2:].isdecimal())

    def builds_for(self, sm: int) -> bool:
        """Return whether it builds for a compute capability, given without the dot."""
        return self.name == "tensorrt" or sm in self.compute_capabilities


def load_library(names: Sequence[str] = tuple(DISTRIBUTIONS)) -> Library:
    """Return the first of the modules that is installed.

    Raises:
        UnsupportedError: None is, it cannot be loaded, or it is too old.
    """
    for name in names:
        try:
            library = Library(name, importlib.import_module(name))
        except ModuleNotFoundError:
            continue
        except (ImportError, OSError) as error:  # a shared library that it needs is not there
            raise UnsupportedError(name, f"cannot be loaded: {error}", "install it again") from error
        if name == "tensorrt" and int(library.version.partition(".")[0]) < OLDEST:
            why = f"version {library.version} is too old: edgeglm builds with {OLDEST} and later"
            raise UnsupportedError(name, why, "update JetPack")
        return library
    raise UnsupportedError(" or ".join(names), "is not installed", INSTALL)


def new_log(library: Library) -> Any:  # noqa: ANN401
    """Return a logger for the library's objects that prints nothing and keeps errors in ``errors``."""

    class Log(library.module.ILogger):  # type: ignore[name-defined, misc]
        def __init__(self) -> None:
            library.module.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:  # noqa: ANN401
            if severity <= library.module.ILogger.ERROR:
                self.errors.append(message)

    return Log()


def reason(messages: Iterable[str]) -> str | None:
    """Return the first reason in what TensorRT said, without its own source lines; None where it gave none.

    A machine without a GPU logs cudaError 35 beside every error: that is the reason only where there is no other.
    """
    lines = [line.strip() for message in messages for line in message.splitlines()]
    for line in lines:
        if not line or NOISE.search(line):
            continue
        found = next((match[1] for pattern in REASONS if (match := pattern.search(line))), line)
        if not NOISE.search(found):
            return found.strip().rstrip(".")
    return next((match[1] for line in lines if (match := CUDA_ERROR.search(line))), None)
