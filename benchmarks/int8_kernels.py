"""INT8 products on this CPU: ONNX Runtime's fast kernels, its exact ones, and the fast ones on weights of 7 bits.

``python benchmarks/int8_kernels.py`` multiplies a 2,048 x 2,048 layer by one token and by 256, on one thread. It prints
the time of each, and its error against the product in fp32. Run on a machine without VNNI, it shows what exact products
cost there; with VNNI, why edgeglm does not ask for them.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edgeglm.export.quantize.lowering import TOKEN_STEP
from edgeglm.machine import describe_kernels, read_machine
from edgeglm.runtimes.engines.ort.options import EXACT, saturates

SIZE, ROUNDS = 2048, 30
TOKENS = (1, 256)
# Name, bits of the weights, session entries.
WAYS: tuple[tuple[str, int, Mapping[str, str]], ...] = (("fast", 8, {}), ("exact", 8, EXACT), ("7 bits", 7, {}))


def layer(weight: NDArray[np.float32], bits: int, entries: Mapping[str, str]) -> onnxruntime.InferenceSession:
    """A session of one MatMulIntegerToFloat on activations of at most 1, with a scale an output channel."""
    scale = np.abs(weight).max(0) / np.float32(2 ** (bits - 1) - 1)
    values = {"w": np.round(weight / scale).astype(np.int8), "scale": scale, "zero": np.int8(0)}
    values |= {"step": np.float32(TOKEN_STEP), "middle": np.uint8(128)}
    inputs = ["codes", "w", "step", "scale", "middle", "zero"]
    graph = helper.make_graph(
        [
            helper.make_node("QuantizeLinear", ["x", "step", "middle"], ["codes"]),
            helper.make_node("MatMulIntegerToFloat", inputs, ["y"], domain="com.microsoft"),
        ],
        "layer",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["tokens", SIZE])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["tokens", SIZE])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in values.items()],
    )
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
    proto: onnx.ModelProto = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    for name, value in entries.items():
        options.add_session_config_entry(name, value)
    return onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])


def fastest(session: onnxruntime.InferenceSession, x: NDArray[Any]) -> float:
    """Milliseconds of the fastest of several runs."""
    times = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        session.run(None, {"x": x})
        times.append(time.perf_counter() - start)
    return min(times) * 1e3


def main() -> None:
    """Print a line a way and a number of tokens."""
    generator = np.random.default_rng(0)
    weight = generator.standard_normal((SIZE, SIZE), np.float32)
    print(f"{describe_kernels(read_machine().int8_kernels)}; fast kernels {'saturate' if saturates() else 'are exact'}")
    print(f"{'KERNELS':<9}{'TOKENS':<8}{'MS':<10}ERROR")
    for name, bits, entries in WAYS:
        session = layer(weight, bits, entries)
        for tokens in TOKENS:
            x = generator.standard_normal((tokens, SIZE), np.float32)
            x /= np.abs(x).max(-1, keepdims=True)
            exact = x @ weight
            error = np.linalg.norm(session.run(None, {"x": x})[0] - exact) / np.linalg.norm(exact)
            print(f"{name:<9}{tokens:<8}{fastest(session, x):<10.3f}{error:.4f}")


if __name__ == "__main__":
    main()
