"""A user's own graph for TensorRT, built by TensorRT for RTX where that is installed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from edgeglm.devices.profile import Profile
from edgeglm.errors import DamagedFileError, UnsupportedError
from edgeglm.export.graph.violation import ANOTHER
from edgeglm.export.targets.base import Proof
from edgeglm.runtimes.engines.tensorrt.builder import Task
from edgeglm.runtimes.engines.tensorrt.cache import try_build
from edgeglm.runtimes.engines.tensorrt.library import load_library

SIZED = True
PROOF_SM = 86  # where TensorRT for RTX does not build for the device's own


def prove(
    file: Path, original: Path, profile: Profile, samples: Sequence[Mapping[str, NDArray[Any]]], work: Path
) -> Proof:
    """Build the graph with TensorRT for RTX, if that is installed, and say so.

    Args:
        file: The graph as it ships.
        original: The user's graph.
        profile: The device.
        samples: Inputs by name.
        work: A folder for files in between.

    Raises:
        UnsupportedError: The builder refuses it.
    """
    try:
        library = load_library(["tensorrt_rtx"])
    except UnsupportedError:
        return Proof(note="no TensorRT for RTX is here to build it: pip install 'edgeglm[tensorrt]'")
    wanted = profile.toolchain.tensorrt
    sm = wanted.sm.value if wanted and library.builds_for(wanted.sm.value) else PROOF_SM
    try:
        try_build(Task(library.name, str(file), sm, {}, str(work / "engine.plan")))
    except (UnsupportedError, DamagedFileError) as error:
        what = error.what.replace(str(file), str(original))
        raise UnsupportedError(what, error.why, ANOTHER) from error
    return Proof(f"built for SM{sm} by {library.title}: graph, types and shapes proven, not executed")
