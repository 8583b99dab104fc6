"""Ranges of a graph's values and errors of its forms on samples, which are read one at a time."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
from numpy.typing import NDArray

from edgeglm.export.calibrate.histogram import Histogram
from edgeglm.export.foreign.measure.activations import kept_groups
from edgeglm.export.foreign.measure.clamps import reach_of
from edgeglm.export.foreign.measure.difference import Comparison, Reach, worst_of
from edgeglm.export.foreign.measure.means import Means, Values
from edgeglm.export.foreign.measure.places import Places, places_of
from edgeglm.export.foreign.read.made import read, sample_files, write
from edgeglm.export.prove.onnx_run import each_float, opened
from edgeglm.runtimes.engines.ort.options import session_options

Arrays = Mapping[str, NDArray[Any]]
# How ONNX Runtime's profile ends the name of a node that it computed.
COMPUTED = "_kernel_time"
# Samples that forms are measured on: at most these, and of graphs that compute much fewer, but for the last.
MOST, LEAST = 32, 2
# Products of all samples of a measurement, of which a choice between forms takes up to 200: half a second of a core.
PRODUCTS = 1 << 33


@dataclass(frozen=True)
class Trials:
    """Samples, files with the outputs of the original for them, and what these are before its last clamps.

    Args:
        pairs: Samples and outputs.
        reach: What the outputs are before the last clamps.
        layouts: Whether the engine may lay out values for its own kernels.
        places: Axes of outputs that are places of an image.
    """

    pairs: Sequence[tuple[Path, Path]]
    reach: Reach | None = None
    layouts: bool = True
    places: Places = field(default_factory=dict)

    @classmethod
    def of(cls, original: Path, files: Sequence[Path], work: Path, most: int = MOST) -> Trials:
        """Run the original on files of samples.

        Args:
            original: The user's file.
            files: Of samples.
            work: A folder for its outputs.
            most: So many of the samples at most.
        """
        run, pairs = opened(original), list[tuple[Path, Path]]()
        for file in files[:: -(-len(files) // most) or 1]:
            pairs.append((file, work / f"outputs-{len(pairs)}-{file.name}"))
            write(pairs[-1][1], run(read(file)))
        places = places_of(original)
        reach = cache(lambda: reach_of(original, (read(sample) for sample, _ in pairs), places))
        return cls(pairs, reach, places=places)

    def error_of(self, graph: bytes) -> float:
        """Return the largest error of an output; infinite where the engine does not take the graph."""
        comparison = Comparison(self.places)
        try:
            run = opened(Path(), graph, layouts=self.layouts)
            for sample, want in self.pairs:
                comparison.add(read(want), run(read(sample)))
            del run  # as `reach` opens the original
        except Exception:  # the engine's own exceptions have no common base
            return float("inf")
        worst = worst_of(comparison.differences(self.reach))
        return worst.error or 0.0 if worst else 0.0


Range = tuple[float, float]
Choose = Callable[[Histogram], Range]


@dataclass(frozen=True)
class Seen:
    """Histograms of values by name, and the ranges that were chosen of them."""

    histograms: Mapping[str, Values]
    _chosen: dict[Choose, Mapping[str, Range]] = field(default_factory=dict)
    _means: dict[str, Means] = field(default_factory=dict)

    def ranges(self, choose: Choose) -> Mapping[str, Range]:
        """Return the range of each value, by name."""
        if choose not in self._chosen:
            chosen = {name: choose(histogram) for name, histogram in self.histograms.items()}
            self._chosen[choose] = {name: (float(low), float(high)) for name, (low, high) in chosen.items()}
        return self._chosen[choose]

    def means(self) -> Mapping[str, Means]:
        """Return the means of each value, by name."""
        if not self._means:
            self._means.update((name, values.means()) for name, values in self.histograms.items())
        return self._means


@dataclass(frozen=True)
class Fold:
    """Values on some of the samples, and trials on others."""

    seen: Seen
    trials: Trials


def affordable(products: int) -> int:
    """Return on how many samples a graph of so many products a run is measured."""
    return max(LEAST, min(MOST, PRODUCTS // max(products, 1)))


def make_folds(
    observed: Callable[[Sequence[Path]], dict[str, Values]],
    original: Path,
    samples: Path,
    held: Path,
    work: Path,
    most: int = MOST,
) -> tuple[Seen, list[Fold]]:
    """Return the values of all samples that calibrate, and folds.

    One half of those that calibrate gives the ranges that the other half is measured in, and the other way round, each
    with a half of those that are held.

    Args:
        observed: Gives histograms on files of samples.
        original: The user's file.
        samples: A folder of samples to calibrate on.
        held: Another, to measure on; the same samples where they are too few for two folders.
        work: A folder for outputs of the original.
        most: Samples of a fold that forms are measured on.
    """
    given, kept = sample_files(samples), sample_files(held)
    halves = [given[::2], given[1::2]]
    if not halves[1] or [file.name for file in given] == [file.name for file in kept]:
        seen = Seen(observed(given))
        return seen, [Fold(seen, Trials.of(original, kept, work, most))]
    parts = [observed(half) for half in halves]
    folds = [
        Fold(Seen(parts[index]), Trials.of(original, [*halves[1 - index], *kept[index::2]], work, most))
        for index in range(2)
    ]
    return Seen(_merged(parts)), folds


def _merged(parts: Sequence[Mapping[str, Values]]) -> dict[str, Values]:
    merged: dict[str, Values] = {}
    for part in parts:
        for name, histogram in part.items():
            merged.setdefault(name, Values()).merge(histogram)
    return merged


def observe(
    model: ir.Model, names: Sequence[str], files: Sequence[Path], work: Path, sized: ir.Model | None = None
) -> dict[str, Values]:
    """Return a histogram of each value, by name; a value that is never finite, or no float, has none.

    Values are seen in groups: what a run is asked for stays in memory to its end.

    Args:
        model: The graph.
        names: Of values and inputs.
        files: Of samples.
        work: A folder for the graph.
        sized: The graph with the sizes of the samples, where that is known: to find them takes long.
    """
    histograms: dict[str, Values] = {}
    inputs = {f"{value.name}" for value in model.graph.inputs}
    shapes = {name: array.shape for name, array in read(files[0]).items()}
    file = work / "observed.onnx"
    ir.save(model, file, external_data="observed.bin")
    groups = kept_groups(sized or model.clone(), [name for name in names if name not in inputs], shapes)
    for index, group in enumerate(groups or [[]]):
        run = each_float(file, _giving(file, group)) if group else None
        for path in files:
            sample = read(path)
            for name in inputs.intersection(names) if not index else ():
                _add(histograms, name, sample[name])
            for name, array in run(sample) if run else ():
                _add(histograms, name, array)
                del array  # before the next is copied
    return histograms


def _giving(file: Path, names: Sequence[str]) -> bytes:
    """Return a graph, over the weights beside its file, whose outputs are some of its values."""
    proto = onnx.load(file, load_external_data=False)
    del proto.graph.output[:]
    proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    graph: bytes = proto.SerializeToString()
    return graph


def reached(model: ir.Model, samples: Iterable[Arrays], work: Path) -> set[str]:
    """Return the names of the nodes that are computed on samples, those in bodies of If and Loop among them.

    Args:
        model: Its nodes have names of their own.
        samples: Of its inputs.
        work: A folder for ONNX Runtime's profile.
    """
    graph = ir.to_proto(model).SerializeToString()
    options = session_options(graph)
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.enable_profiling, options.profile_file_prefix = True, str(work / "reached")
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    for sample in samples:
        session.run(None, dict(sample))
    events = json.loads(Path(session.end_profiling()).read_bytes())
    return {event["name"].removesuffix(COMPUTED) for event in events if event["name"].endswith(COMPUTED)}


def _add(histograms: dict[str, Values], name: str, array: NDArray[Any]) -> None:
    if array.dtype == np.float32 and np.isfinite(array).any():
        histograms.setdefault(name, Values()).take(array)
