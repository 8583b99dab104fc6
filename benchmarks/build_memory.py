"""What TensorRT's builder takes: ``python benchmarks/build_memory.py [MIB …]``, a graph of products for each size.

Peak resident memory of a fresh process, less what importing the library took, over the bytes of the graph's weights.
tensorrt-rtx on the CPU; a Jetson's TensorRT was not at hand.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from onnx import TensorProto, helper

WIDTH = 2048
LAYER = WIDTH * WIDTH * 2
BUILD = """
import json, sys
from edgeglm.memory import peak_rss
from edgeglm.runtimes.engines.tensorrt.builder import Task, build
from edgeglm.runtimes.engines.tensorrt.library import load_library

library = load_library(["tensorrt_rtx"])
before = peak_rss()
build(Task("tensorrt_rtx", sys.argv[1], 86, {"x": ((1, 2048), (256, 2048), (256, 2048))}, sys.argv[2]), library, id)
print(json.dumps([library.title, before, peak_rss()]))
"""


def write_graph(path: Path, layers: int) -> None:
    """Products in fp16, one after the other, with their weights in a file beside the graph."""
    random, nodes, weights = np.random.default_rng(0), [], []
    with open(path.with_suffix(".bin"), "wb") as file:
        for layer in range(layers):
            file.write((random.standard_normal((WIDTH, WIDTH), np.float32) / 45).astype(np.float16).tobytes())
            weight = TensorProto(name=f"w{layer}", data_type=TensorProto.FLOAT16, dims=[WIDTH, WIDTH])
            weight.data_location = TensorProto.EXTERNAL
            where = {"location": path.with_suffix(".bin").name, "offset": layer * LAYER, "length": LAYER}
            for key, value in where.items():
                weight.external_data.add(key=key, value=str(value))
            weights.append(weight)
            nodes.append(helper.make_node("MatMul", [f"x{layer}" if layer else "x", f"w{layer}"], [f"p{layer}"]))
            nodes.append(helper.make_node("Relu", [f"p{layer}"], [f"x{layer + 1}"]))
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT16, ["n", WIDTH]) for name in ("x", f"x{layers}")]
    graph = helper.make_graph(nodes, "graph", ends[:1], ends[1:], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    path.write_bytes(model.SerializeToString())


def main() -> None:
    """Print a row for each size."""
    sizes = [int(size) for size in sys.argv[1:]] or [96, 384]
    print(f"{'WEIGHTS':>10}{'PEAK':>10}{'ENGINE':>10}  PEAK OVER WEIGHTS")
    for size in sizes:
        with tempfile.TemporaryDirectory() as folder:
            model, engine = Path(folder, "model.onnx"), Path(folder, "engine.plan")
            layers = max(size * 2**20 // LAYER, 1)
            write_graph(model, layers)
            command = [sys.executable, "-c", BUILD, str(model), str(engine)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            title, before, peak = json.loads(done.stdout)
            took, weights = peak - before, layers * LAYER
            row = f"{weights >> 20:>7}MiB{took >> 20:>7}MiB{engine.stat().st_size >> 20:>7}MiB"
            print(f"{row}  {took / weights:.2f}  {title}")


if __name__ == "__main__":
    main()
