"""Samples whose outputs are known, on which the forms of a graph are measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from edgeglm.export.foreign.difference import Comparison, worst_of
from edgeglm.export.foreign.made import read
from edgeglm.export.prove.onnx_run import opened


@dataclass(frozen=True)
class Trials:
    """Samples with the outputs of the original."""

    held: Sequence[tuple[Mapping[str, NDArray[Any]], Mapping[str, Any]]]

    @classmethod
    def of(cls, original: Path, folder: Path) -> Trials:
        """Run the original on a folder of samples."""
        run = opened(original)
        return cls([(sample, run(sample)) for sample in read(folder)])

    def error_of(self, graph: bytes) -> float:
        """Return the largest error of an output; infinite where the engine does not take the graph."""
        comparison = Comparison()
        try:
            run = opened(Path(), graph)
            for sample, want in self.held:
                comparison.add(want, run(sample))
        except Exception:  # the engine's own exceptions have no common base
            return float("inf")
        worst = worst_of(comparison.differences())
        return worst.error or 0.0 if worst else 0.0
