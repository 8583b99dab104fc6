"""An emitted ONNX file in ONNX Runtime: run where it is small, and always opened once."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from edgeglm.runtimes.engines.ort.engine import Decoder
from edgeglm.runtimes.engines.ort.options import WEIGHTS_FOLDER, session_options

Run = Callable[[Mapping[str, NDArray[Any]]], dict[str, Any]]
FLOATS = "tensor(float)"
# All that the engine does to a graph but for layouts of its own.
PLAIN = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED


def run_file(path: Path, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Run an ONNX file with its weights beside it; outputs by name."""
    return opened(path)(feeds)


def opened(path: Path, graph: bytes | None = None, *, layouts: bool = True) -> Run:
    """Return a function from feeds to outputs by name.

    Args:
        path: An ONNX file.
        graph: Another one over its weights.
        layouts: Whether the engine may lay out values for its own kernels, which crashes for some graphs with roundings
            behind every operator (ONNX Runtime 1.31: Cast between Transpose and GRU).
    """
    options = _options(graph or path)
    if not layouts:
        options.graph_optimization_level = PLAIN
    if graph:
        options.add_session_config_entry(WEIGHTS_FOLDER, str(path.parent))
    session = _session(graph or path, options)
    names = [value.name for value in session.get_outputs()]
    return lambda feeds: dict(zip(names, session.run(names, dict(feeds)), strict=True))


def each_float(
    path: Path, graph: bytes
) -> Callable[[Mapping[str, NDArray[Any]]], Iterator[tuple[str, NDArray[np.float32]]]]:
    """Return a function from feeds to the outputs in fp32, by name, in the engine's own memory.

    `opened` copies all of them, which takes twice their bytes. An array is only there while the next is not asked for.

    Args:
        path: An ONNX file.
        graph: Another one over its weights.
    """
    options = _options(graph)
    options.graph_optimization_level = PLAIN
    options.add_session_config_entry(WEIGHTS_FOLDER, str(path.parent))
    session = _session(graph, options)
    names = [value.name for value in session.get_outputs()]

    def run(feeds: Mapping[str, NDArray[Any]]) -> Iterator[tuple[str, NDArray[np.float32]]]:
        values = {name: onnxruntime.OrtValue.ortvalue_from_numpy(array) for name, array in feeds.items()}
        results = session.run_with_ort_values(names, values)
        for name, result in zip(names, results, strict=True):
            if result.data_type() == FLOATS:
                yield name, result.numpy()

    return run


def decode_file(path: Path, prompts: Iterable[Mapping[str, NDArray[Any]]]) -> Iterator[NDArray[Any]]:
    """Yield the logits (1, 1, vocabulary) behind each prompt, in the session that a device has for the decoder."""
    decoder = Decoder(path, len(os.sched_getaffinity(0)), 1)
    for values in prompts:
        decoder.truncate(0)
        yield decoder.step(values["hidden"], values["position_ids"])[None]
    decoder.close()


def check_loads(path: Path) -> None:
    """Let the engine read the whole graph, its types, shapes and weights, without copying a weight."""
    options = _options(path)
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.add_session_config_entry("session.disable_prepacking", "1")
    _session(path, options)


def _options(path: Path | bytes) -> onnxruntime.SessionOptions:
    options = session_options(path)
    options.enable_cpu_mem_arena = False
    options.enable_mem_pattern = False  # it plans one block, in which outputs that are kept count twice
    return options


def _session(path: Path | bytes, options: onnxruntime.SessionOptions) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
