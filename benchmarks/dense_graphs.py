"""Small dense networks with samples: layers of few weights and few rows, where integers take time to begin."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

SAMPLES = 64
# Sizes of layers, and rows of a sample.
NETS: dict[str, tuple[Sequence[int], int]] = {
    "one": ((256, 64), 1),
    "regress": ((10, 64, 64, 1), 1),
    "tiny": ((32, 64, 32), 1),
    "small": ((64, 128, 64), 1),
    "digits": ((784, 128, 10), 1),
    "square": ((256, 256, 256), 1),
    "deep": ((512, 512, 512, 10), 1),
    "classes": ((32, 32, 1000), 1),
    "autoencoder": ((640, 128, 128, 8, 128, 128, 640), 1),
    "wide": ((1024, 1024, 1024), 1),
    "rows-4": ((256, 256, 64), 4),
    "rows-32": ((64, 256, 64), 32),
    "rows-48": ((96, 384, 96), 48),
}


def write_dense(folder: Path) -> list[Path]:
    """Write NAME.onnx and the samples NAME/*.npz of each network; returns the files."""
    files = []
    for number, (name, (sizes, rows)) in enumerate(NETS.items()):
        random, file = np.random.default_rng(number), folder / f"{name}.onnx"
        onnx.save(_net(sizes, rows, random), file)
        (folder / name).mkdir()
        for index in range(SAMPLES):
            np.savez(folder / name / f"{index:04}.npz", x=random.standard_normal((rows, sizes[0])).astype(np.float32))
        files.append(file)
    return files


def _net(sizes: Sequence[int], rows: int, random: np.random.Generator) -> onnx.ModelProto:
    nodes, weights, last = list[onnx.NodeProto](), dict[str, NDArray[Any]](), len(sizes) - 2
    for index, (taken, given) in enumerate(pairwise(sizes)):
        weights[f"w{index}"] = random.standard_normal((taken, given)) * np.sqrt(2 / taken)
        weights[f"b{index}"] = random.standard_normal(given) / 10
        result = "y" if index == last else f"h{index}"
        source = f"r{index - 1}" if index else "x"
        nodes.append(helper.make_node("Gemm", [source, f"w{index}", f"b{index}"], [result]))
        if index < last:
            nodes.append(helper.make_node("Relu", [result], [f"r{index}"]))
    tensors = [numpy_helper.from_array(array.astype(np.float32), name) for name, array in weights.items()]
    ends = [
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [rows, size])
        for name, size in (("x", sizes[0]), ("y", sizes[-1]))
    ]
    graph = helper.make_graph(nodes, "net", ends[:1], ends[1:], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
