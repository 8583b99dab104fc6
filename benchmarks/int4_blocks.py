"""INT4 products on this CPU by the columns that share a scale: ``python benchmarks/int4_blocks.py``.

Multiplies a 4,096 x 4,096 layer of normally distributed weights by 1, 8 and 256 tokens, on one thread, with ONNX
Runtime's MatMulNBits. It prints the processor time of each, the fastest of runs in turns, and its error against the
product in fp32.
"""

from __future__ import annotations

import time

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edgeglm.export.quantize.lowering import block_attributes
from edgeglm.export.quantize.schemes import BLOCK_SIZES, Int4
from edgeglm.export.quantize.storage import encode
from edgeglm.machine import describe_kernels, read_machine

SIZE, ROUNDS = 4096, 15
TOKENS = (1, 8, 256)


def layer(weight: NDArray[np.float32], scheme: Int4) -> onnxruntime.InferenceSession:
    """A session of one MatMulNBits."""
    packed, scale = encode(scheme, "ort", weight)
    node = helper.make_node("MatMulNBits", ["x", "w", "s"], ["y"], domain="com.microsoft")
    node.attribute.extend(
        helper.make_attribute(*attribute) for attribute in block_attributes(scheme, SIZE, SIZE).items()
    )
    graph = helper.make_graph(
        [node],
        "layer",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["tokens", SIZE])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["tokens", SIZE])],
        [numpy_helper.from_array(packed, "w"), numpy_helper.from_array(scale, "s")],
    )
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
    proto: onnx.ModelProto = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])


def main() -> None:
    """Print a line a block size and a number of tokens."""
    generator = np.random.default_rng(0)
    weight = generator.standard_normal((SIZE, SIZE), np.float32)
    sessions = {size: layer(weight, Int4(size)) for size in BLOCK_SIZES}
    print(f"{describe_kernels(read_machine().int8_kernels)}\n{'BLOCK':<7}{'TOKENS':<8}{'MS':<10}{'TO 64':<7}ERROR")
    for tokens in TOKENS:
        x = generator.standard_normal((tokens, SIZE), np.float32)
        exact, taken = x @ weight.T, dict.fromkeys(BLOCK_SIZES, np.inf)
        for _ in range(ROUNDS):
            for size, session in sessions.items():
                start = time.process_time()
                session.run(None, {"x": x})
                taken[size] = min(taken[size], 1e3 * (time.process_time() - start))
        for size, session in sessions.items():
            error = np.linalg.norm(session.run(None, {"x": x})[0] - exact) / np.linalg.norm(exact)
            print(f"{size:<7}{tokens:<8}{taken[size]:<10.3f}{taken[size] / taken[64]:<7.2f}{error:.4f}")


if __name__ == "__main__":
    main()
