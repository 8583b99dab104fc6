"""Steps of an export that differ by engine: one file each in the engine's folder, imported when it is asked for."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from edgeglm import manifest
from edgeglm.devices.profile import Profile
from edgeglm.engines import EngineName
from edgeglm.export.model import Choice
from edgeglm.export.prepare.types import Calibration, Opened, Prepared, PreparedModule, Request
from edgeglm.export.prove.probes import Example
from edgeglm.export.prove.prover import Prover
from edgeglm.export.write.converted import Converted
from edgeglm.export.write.writer import BundleWriter

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from onnxruntime.quantization import CalibrationDataReader

FOLDER = "edgeglm.export.targets"


class CheckStep(Protocol):
    """Conditions of an engine's modules, before anything is made of them: ``check.py``."""

    def check(self, opened: Opened, examples: Sequence[Example]) -> None:
        """Raise an error for the user where a tool or samples are missing, or the model is too large."""


class CalibrateStep(Protocol):
    """Ranges of activations, for an engine that computes in integers: ``calibrate.py``."""

    def calibrate(
        self, opened: Opened, examples: Sequence[Example], found: Calibration | None
    ) -> tuple[Request, Calibration]:
        """Return the request with the precision that is nearest, and the ranges, added to what was found."""


class WriteStep(Protocol):
    """Modules that a converter writes: ``write.py``."""

    def write(
        self,
        prepared: Prepared,
        module: PreparedModule,
        writer: BundleWriter,
        prover: Prover,
        share: Callable[[float], None],
        converted: Converted,
    ) -> manifest.Module:
        """Write a module and prove it.

        Args:
            prepared: The model.
            module: What is written.
            writer: Of the bundle.
            prover: Computes the original.
            share: Is told how much of it is written, from 0 to 1.
            converted: What earlier exports have written.
        """


class CompileStep(Protocol):
    """Modules that a compiler makes another file of, once they are written: ``compile.py``."""

    def compile_module(
        self, prepared: Prepared, module: PreparedModule, writer: BundleWriter
    ) -> tuple[manifest.Compiled, float]:
        """Compile a module in the bundle; returns what was proven of it, and its error."""


class PeakStep(Protocol):
    """Memory of modules that are written, or run, in a way of their own: ``peak.py``."""

    def export_peak(self, opened: Opened) -> int:
        """Return the peak resident memory of writing and proving the modules."""

    def state(self, prepared: Prepared) -> tuple[int, int]:
        """Return the bytes of a decoder's state on the device, and how many tokens are computed at once."""


@dataclass(frozen=True)
class Proof:
    """A proof of a user's graph beside its computation.

    Args:
        text: For the manifest.
        note: For the user.
        compiled: The file beside the graph that a compiler made of it.
    """

    text: str | None = None
    note: str | None = None
    compiled: manifest.Compiled | None = None


class GraphStep(Protocol):
    """A user's own graph for an engine: ``export/targets/NAME/graph.py``.

    ``SIZED`` is whether the engine builds for sizes that are known only.
    """

    SIZED: bool

    def prove(
        self, file: Path, original: Path, profile: Profile, samples: Sequence[Mapping[str, NDArray[Any]]], work: Path
    ) -> Proof:
        """Prove a graph on its engine, where the engine's tools are here.

        Args:
            file: The graph.
            original: The user's own file, which messages name.
            profile: The device.
            samples: Of its inputs.
            work: A folder for what is needed meanwhile.

        Raises:
            UnsupportedError: The engine refuses the graph.
            AccuracyError: It computes something else.
        """


# Writes a graph in INT8 to a file, but for nodes of these names, which are kept wide.
Quantize = Callable[[Path, Collection[str]], None]


@dataclass(frozen=True)
class Quantizer:
    """INT8 of one graph, calibrated.

    Args:
        nodes: Names of those that can be kept wide, in the order of computation.
        forms: Writers by how each keeps nodes wide (``computed in fp32``), the cheapest first.
    """

    nodes: Sequence[str]
    forms: Mapping[str, Quantize]


class QuantizeStep(Protocol):
    """INT8 of a user's own graph for an engine that takes one form of it: ``export/targets/NAME/quantize.py``."""

    def quantizer(self, graph: Path, reader: CalibrationDataReader, precision: str, *, floats: bool) -> Quantizer:
        """Calibrate the graph on the reader's samples.

        Args:
            graph: The graph, folded.
            reader: Gives samples by input.
            precision: ``int8``, or the bits that are asked for, as in ``a16w8``.
            floats: Whether the accelerator computes in floating point too.
        """


def check_steps(choices: Iterable[Choice]) -> Iterator[CheckStep]:
    """Yield the checks of the chosen engines."""
    yield from _steps(choices, "check")


def calibrate_steps(choices: Iterable[Choice]) -> Iterator[CalibrateStep]:
    """Yield the calibrations of the chosen engines."""
    yield from _steps(choices, "calibrate")


def peak_steps(choices: Iterable[Choice]) -> Iterator[PeakStep]:
    """Yield the predictions of the chosen engines."""
    yield from _steps(choices, "peak")


def write_step(choice: Choice) -> WriteStep | None:
    """Return what writes a module in place of the exporter, if its engine has that."""
    return next(_steps([choice], "write"), None)


def compile_step(choice: Choice) -> CompileStep | None:
    """Return what compiles a module that the exporter has written, if its engine has that."""
    return next(_steps([choice], "compile"), None)


def graph_step(engine: EngineName) -> GraphStep:
    """Return what an engine does with a user's own graph."""
    return cast(GraphStep, importlib.import_module(f"{FOLDER}.{engine}.graph"))


def quantize_step(engine: EngineName) -> QuantizeStep:
    """Return how an engine's INT8 of a user's own graph is made."""
    return cast(QuantizeStep, importlib.import_module(f"{FOLDER}.{engine}.quantize"))


def _steps(choices: Iterable[Choice], name: str) -> Iterator[Any]:
    for engine in dict.fromkeys(choice.engine for choice in choices if choice.engine):
        place = f"{FOLDER}.{engine}.{name}"
        if importlib.util.find_spec(f"{FOLDER}.{engine}") and importlib.util.find_spec(place):
            yield importlib.import_module(place)
