"""Processor time of one layer's attention by what its keys and values are stored in: fp32, fp16, or INT8 per head.

``python -m benchmarks.kv_storage [--behind N] [--layers N]`` computes attention as the decoder's graph does, on one
thread, over the buffers of one layer after the other, as a decoder has them: a step finds none in the processor's
cache. What is not fp32 is widened at each step, by a Cast or a DequantizeLinear in front of both products. The forms
take turns. The table has medians of a layer's processor time, the bytes that a token takes, and the difference from
fp32 on random values. The form ``read`` only reads the same fp32 values once: no attention can take less.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper

# Query heads, key/value heads, width of a head.
LAYERS = {"glm4v-300m": (8, 2, 128), "autoglm-phone-9b": (32, 2, 128)}
FORMS = {"fp32": TensorProto.FLOAT, "fp16": TensorProto.FLOAT16, "int8": TensorProto.INT8}
STEPS = (1, 4, 32, 256)
# Largest magnitude that an INT8 code stands for, on values of a normal distribution.
RANGE = 4.0
Arrays = dict[str, NDArray[Any]]
NAMES = ("key", "value")
HEADINGS = ("LAYER", "TOKENS", "FORM", "MS", "RATIO", "BYTES A TOKEN", "ERROR")


def session(form: str, kv_heads: int, width: int) -> ort.InferenceSession:
    """Return a layer's attention over keys and values (filled, kv_heads, width) in a form."""
    wide = "" if form == "fp32" else "wide_"
    nodes = [node for name in NAMES for node in _widened(form, name)]
    products: dict[str, Any] = {"domain": "com.microsoft", "transBatchB": 1}
    nodes += [
        helper.make_node("FusedMatMul", ["queries", f"{wide}key"], ["scores"], transB=1, alpha=width**-0.5, **products),
        helper.make_node("Softmax", ["scores"], ["weights"], axis=-1),
        helper.make_node("FusedMatMul", ["weights", f"{wide}value"], ["mixed"], **products),
    ]
    values = helper.make_tensor_value_info
    queries, mixed = (values(name, TensorProto.FLOAT, [kv_heads, "rows", width]) for name in ("queries", "mixed"))
    stored = [values(name, FORMS[form], ["filled", kv_heads, width]) for name in NAMES]
    scale = [helper.make_tensor("scale", TensorProto.FLOAT, [kv_heads], [RANGE / 127] * kv_heads)]
    graph = helper.make_graph(nodes, "attention", [queries, *stored], [mixed], scale if form == "int8" else [])
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    data = helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()
    return ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])


def _widened(form: str, name: str) -> list[NodeProto]:
    if form == "int8":
        return [helper.make_node("DequantizeLinear", [name, "scale"], [f"wide_{name}"], axis=1)]
    if form == "fp16":
        return [helper.make_node("Cast", [name], [f"wide_{name}"], to=TensorProto.FLOAT)]
    return []


def stored(form: str, values: NDArray[np.float32]) -> NDArray[np.generic]:
    """Return values in a form."""
    if form == "int8":
        codes: NDArray[np.int8] = np.clip(np.rint(values * 127 / RANGE), -127, 127).astype(np.int8)
        return codes
    return values.astype(np.float16) if form == "fp16" else values


def rows(layer: str, behind: int, layers: int) -> Iterator[tuple[str, ...]]:
    """Yield a line for each number of tokens in a step."""
    heads, kv_heads, width = LAYERS[layer]
    random = np.random.default_rng(0)
    exact = [[random.standard_normal((behind, kv_heads, width), np.float32) for _ in NAMES] for _ in range(layers)]
    held = {form: [[stored(form, values) for values in pair] for pair in exact] for form in FORMS}
    sessions = {form: session(form, kv_heads, width) for form in FORMS}
    for count in STEPS:
        queries = random.standard_normal((kv_heads, heads // kv_heads * count, width), np.float32)
        feeds: dict[str, list[Arrays]] = {
            form: [{"queries": queries, **dict(zip(NAMES, pair, strict=True))} for pair in pairs]
            for form, pairs in held.items()
        }
        times: dict[str, list[float]] = {form: [] for form in (*FORMS, "read")}
        for _ in range(max(3, 12 // count)):
            for form, opened in sessions.items():
                times[form].append(_milliseconds(partial(opened.run, None), feeds[form]) / layers)
            times["read"].append(_milliseconds(_read, feeds["fp32"]) / layers)
        want = sessions["fp32"].run(None, feeds["fp32"][0])[0]
        for form, measured in times.items():
            middle = statistics.median(measured)
            cells = [layer, f"{count}", form, f"{middle:.2f}", f"{middle / statistics.median(times['fp32']):.2f}"]
            if form in sessions:
                mixed = sessions[form].run(None, feeds[form][0])[0]
                error = float(np.linalg.norm(mixed - want) / np.linalg.norm(want))
                cells += [f"{2 * feeds[form][0]['key'][:1].nbytes}", f"{error:.1g}"]
            yield (*cells, *[""] * (len(HEADINGS) - len(cells)))


def _milliseconds(function: Callable[[Arrays], object], feeds: Sequence[Arrays]) -> float:
    """Return the processor time of a function over one layer after the other."""
    begin = time.process_time()
    for feed in feeds:
        function(feed)
    return 1e3 * (time.process_time() - begin)


def _read(feed: Arrays) -> None:
    for name in NAMES:
        feed[name].max()


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--behind", type=int, default=3000, metavar="N", help="tokens before the step (default: 3000)")
    parser.add_argument(
        "--layers", type=int, default=24, metavar="N", help="layers, each with its buffers (default: 24)"
    )
    options = parser.parse_args()
    table: list[tuple[str, ...]] = [HEADINGS]
    for layer in LAYERS:
        table += rows(layer, options.behind, options.layers)
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    print("\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in table))


if __name__ == "__main__":
    main()
