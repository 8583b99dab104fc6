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


def run_file(path: Path, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Run an ONNX file with its weights beside it; outputs by name."""
    return opened(path)(feeds)


def opened(path: Path, graph: bytes | None = None) -> Run:
    """Return a function from feeds to outputs by name: of an ONNX file, or of another graph over its weights."""
    options = _options(graph or path)
    if graph:
        options.add_session_config_entry(WEIGHTS_FOLDER, str(path.parent))
    session = _session(graph or path, options)
    names = [value.name for value in session.get_outputs()]
    return lambda feeds: dict(zip(names, session.run(names, dict(feeds)), strict=True))


def each_float(
    path: Path, graph: bytes
) -> Callable[[Mapping[str, NDArray[Any]]], Iterator[tuple[str, NDArray[np.float32]]]]:
    """Return a function from feeds to the outputs in fp32, by name: one is copied from the engine at a time.

    `opened` copies all of them while the engine still has its own, which takes twice their bytes.

    Args:
        path: An ONNX file.
        graph: Another one over its weights.
    """
    options = _options(graph)
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.add_session_config_entry(WEIGHTS_FOLDER, str(path.parent))
    session = _session(graph, options)
    names = [value.name for value in session.get_outputs()]

    def run(feeds: Mapping[str, NDArray[Any]]) -> Iterator[tuple[str, NDArray[np.float32]]]:
        values = {name: onnxruntime.OrtValue.ortvalue_from_numpy(array) for name, array in feeds.items()}
        results = session.run_with_ort_values(names, values)
        for name in names:
            result = results.pop(0)
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
