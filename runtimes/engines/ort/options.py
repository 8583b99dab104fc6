"""Sessions of ONNX Runtime on the CPU, whose INT8 products are exact on every processor.

On x86 without VNNI, ONNX Runtime's fast kernels add pairs of INT8 products in 16 bits, which saturate. Its session
entry ``session.x64quantprecision`` makes it take others. It is set only where products saturate, because it would also
replace VNNI's kernels, which are exact, and 2.5 times as fast for a prompt (``benchmarks/int8_kernels.py``).
"""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import BinaryIO

import numpy as np
import onnxruntime

from edgeglm.errors import DamagedFileError, UsageError

# Of ONNX Runtime's log: at this level QNN's compiler names the operators that it refuses.
ERROR = 3
EXACT = {"session.x64quantprecision": "1"}
# Threads wait busily for the next operator, which comes within microseconds, and not for the next run, nor for a thread
# whose core another program has: that cost a third of a token's processor time.
IDLE = {"session.force_spinning_stop": "1", "session.intra_op.spin_duration_us": "200"}
# An ONNX file of one node, ``y = MatMulInteger(x, w)``, of unsigned and signed bytes.
PRODUCT = (
    b'\x08\x08:=\n\x18\n\x01x\n\x01w\x12\x01y"\rMatMulInteger\x12\x00Z\t\n\x01x\x12\x04\n\x02\x08\x02'
    b"Z\t\n\x01w\x12\x04\n\x02\x08\x03b\t\n\x01y\x12\x04\n\x02\x08\x06B\x04\n\x00\x10\r"
)
# A run's option, by which the engine's arena gives back what no buffer is in once the run is over.
SHRINK = "memory.enable_memory_arena_shrinkage"
CHUNK = 1 << 20
# Where a graph that is given as bytes has its weights.
WEIGHTS_FOLDER = "session.model_external_initializers_file_folder_path"
# Pieces of the names of operators after which activations are integers.
INTEGERS = (b"QuantizeLinear", b"DynamicQuantize", b"Integer", b"QLinear", b"QGemm", b"QAttention")


def open_session(
    path: Path,
    threads: int,
    entries: Mapping[str, str] | None = None,
    save_to: Path | None = None,
    graph: bytes | None = None,
    *,
    is_decoder: bool = False,
) -> onnxruntime.InferenceSession:
    """Return a session of a module's file.

    Args:
        path: The graph.
        threads: Of each operator.
        entries: Of ONNX Runtime's session configuration.
        save_to: Where to write the graph as the engine has optimized it.
        graph: Another one over the weights that are beside the file.
        is_decoder: Whether the shapes of each step are new.

    Raises:
        UsageError: Its path is not UTF-8, and the engine takes no other.
        DamagedFileError: The engine cannot load it.
    """
    _check_name(path)
    options = session_options(graph or path, threads, entries)
    # The engine keeps the places of all buffers for every shape that it has met: of a decoder's steps, without an end.
    options.enable_mem_pattern = not is_decoder
    if graph:
        options.add_session_config_entry(WEIGHTS_FOLDER, str(path.parent))
    if save_to:
        options.optimized_model_filepath = str(save_to)
    try:
        return onnxruntime.InferenceSession(graph or path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the engine's own exceptions have no common base
        why = f"ONNX Runtime {onnxruntime.__version__} cannot load it: {str(error).splitlines()[0]}"
        raise DamagedFileError(path, why, "export the bundle again") from error


def _check_name(path: Path) -> None:
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        why = "has a path that is not UTF-8, and ONNX Runtime opens no such file"
        raise UsageError(path, why, "rename its folder") from error


def session_options(
    graph: str | Path | bytes, threads: int | None = None, entries: Mapping[str, str] | None = None
) -> onnxruntime.SessionOptions:
    """Return the options that every session of edgeglm has.

    Args:
        graph: The graph's file, or its bytes.
        threads: Of each operator; all cores if None.
        entries: More of ONNX Runtime's session configuration.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = ERROR
    options.intra_op_num_threads = threads or len(os.sched_getaffinity(0))
    exact = EXACT if saturates() and _has_integer_activations(graph) else {}
    for name, value in {**exact, **IDLE, **(entries or {})}.items():
        options.add_session_config_entry(name, value)
    return options


@cache
def shrinking() -> onnxruntime.RunOptions:
    """Return the options of a run behind which the engine gives back the memory that it does not use."""
    options = onnxruntime.RunOptions()
    options.add_run_config_entry(SHRINK, "cpu:0")
    return options


@cache
def saturates() -> bool:
    """Tell whether the engine's fast INT8 kernels saturate on this processor: they are asked for a product."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = ERROR
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(PRODUCT, options, providers=["CPUExecutionProvider"])
    (product,) = session.run(None, {"x": np.full((1, 4), 255, np.uint8), "w": np.full((4, 1), 127, np.int8)})
    return int(product[0, 0]) != 4 * 255 * 127


def _has_integer_activations(graph: str | Path | bytes) -> bool:
    """Tell whether a graph multiplies integers.

    One that only stores its weights so is computed in fp32, exactly; told to be exact, the engine fails on such weights
    where they have a scale a channel and no zero point (`QDQS8ToU8Transformer`).
    """
    behind = b""
    with suppress(OSError), _opened(graph) as file:  # what cannot be read, the engine refuses itself
        while piece := file.read(CHUNK):
            window = behind + piece
            if any(name in window for name in INTEGERS):
                return True
            behind = window[-max(map(len, INTEGERS)) :]
    return False


def _opened(graph: str | Path | bytes) -> BinaryIO:
    return io.BytesIO(graph) if isinstance(graph, bytes) else open(graph, "rb")
