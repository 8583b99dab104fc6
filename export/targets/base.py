"""Steps of an export that differ by engine: one file each in the engine's folder, imported when it is asked for."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from edgeglm.devices.profile import Profile
from edgeglm.engines import EngineName

if TYPE_CHECKING:
    from onnxruntime.quantization import CalibrationDataReader


class GraphStep(Protocol):
    """A user's own graph for an engine: ``export/targets/NAME/graph.py``.

    ``SIZED`` is whether the engine builds for sizes that are known only.
    """

    SIZED: bool

    def prove(self, file: Path, original: Path, profile: Profile, work: Path) -> tuple[str | None, str | None]:
        """Return what was proven of a graph beside its computation, and what to tell the user.

        Args:
            file: The graph.
            original: The user's own file, which messages name.
            profile: The device.
            work: A folder for what is needed meanwhile.

        Raises:
            UnsupportedError: The engine refuses the graph.
        """


class QuantizeStep(Protocol):
    """INT8 of a user's own graph for an engine, by ONNX Runtime's own tools: ``export/targets/NAME/quantize.py``."""

    def quantize(self, graph: Path, output: Path, reader: CalibrationDataReader) -> None:
        """Write the graph in INT8, in ranges of the reader's samples."""


def graph_step(engine: EngineName) -> GraphStep:
    """Return what an engine does with a user's own graph."""
    return cast(GraphStep, _step(engine, "graph"))


def quantize_step(engine: EngineName) -> QuantizeStep:
    """Return how an engine's INT8 is made."""
    return cast(QuantizeStep, _step(engine, "quantize"))


def _step(engine: EngineName, name: str) -> Any:  # noqa: ANN401 (each step has its own functions)
    return importlib.import_module(f"edgeglm.export.targets.{engine}.{name}")
