"""ONNX Runtime on the CPU: sessions of either dialect."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from onnxruntime import OrtValue

from edgeglm.errors import DamagedFileError
from edgeglm.runtimes.session import Feeds

DTYPES: dict[str, type[np.generic]] = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
}
HIDDEN = -1e4  # what an additive mask hides a token with


class Encoder:
    """A module without a state."""

    def __init__(self, path: Path, threads: int) -> None:
        self.session = _load(path, threads)

    def run(self, feeds: Feeds) -> dict[str, NDArray[Any]]:
        """Outputs by name."""
        inputs = {
            each.name: feeds[each.name].astype(DTYPES[each.type], copy=False) for each in self.session.get_inputs()
        }
        names = [each.name for each in self.session.get_outputs()]
        return dict(zip(names, self.session.run(names, inputs), strict=True))

    def close(self) -> None:
        """Drop the session."""
        del self.session


class Decoder:
    """A decoder with room for `capacity` tokens.

    In the ``ort`` dialect past and present keys are one buffer of that size, in which the engine fills row after row.
    In the ``portable`` dialect they grow with each step, and stay in the engine's memory in between.
    """

    def __init__(self, path: Path, threads: int, capacity: int) -> None:
        self.session, self.capacity, self.length = _load(path, threads), capacity, 0
        self.types = {each.name: DTYPES[each.type] for each in self.session.get_inputs()}
        self.shared = "seqlens_k" in self.types
        self.state = self._empty()
        self.state_bytes = 0
        for each in self.session.get_inputs():
            if each.name in self.state:
                sizes = [size if isinstance(size, int) else capacity for size in each.shape]
                self.state_bytes += int(np.prod(sizes)) * np.dtype(DTYPES[each.type]).itemsize

    def step(self, hidden: NDArray[np.float32], position_ids: NDArray[np.int64]) -> NDArray[np.float32]:
        """Logits (vocabulary) of the last token."""
        count = hidden.shape[1]
        total = self.length + count
        binding = self.session.io_binding()
        for name, array in self._inputs(hidden, position_ids, total).items():
            binding.bind_cpu_input(name, np.ascontiguousarray(array))
        binding.bind_output("logits")
        for name, value in self.state.items():
            binding.bind_ortvalue_input(name, value)
            if self.shared:
                binding.bind_ortvalue_output(_present(name), value)
            else:
                binding.bind_output(_present(name))
        self.session.run_with_iobinding(binding)
        logits, *present = binding.get_outputs()  # in the order of being bound
        if not self.shared:
            self.state = dict(zip(self.state, present, strict=True))
        self.length = total
        last: NDArray[np.float32] = logits.numpy().astype(np.float32).reshape(-1)
        return last

    def reset(self) -> None:
        """Forget all tokens; a shared buffer is simply filled again from its beginning."""
        self.length = 0
        if not self.shared:
            self.state = self._empty()

    def close(self) -> None:
        """Drop the session and the state."""
        self.state.clear()
        del self.session

    def _inputs(
        self, hidden: NDArray[np.float32], position_ids: NDArray[np.int64], total: int
    ) -> dict[str, NDArray[Any]]:
        count = hidden.shape[1]
        everything: dict[str, NDArray[Any]] = {
            "hidden": hidden,
            "position_ids": position_ids,
            "seqlens_k": np.array([total - 1]),
            "total_length": np.array([total]),
        }
        if "mask" in self.types:
            everything["mask"] = np.triu(np.full((1, 1, count, total), HIDDEN, np.float32), total - count + 1)
        return {name: everything[name].astype(dtype) for name, dtype in self.types.items() if name not in self.state}

    def _empty(self) -> dict[str, OrtValue]:
        return {
            each.name: self._buffer(each.shape, DTYPES[each.type])
            for each in self.session.get_inputs()
            if each.name.startswith("past_")
        }

    def _buffer(self, shape: list[int | str], dtype: type[np.generic]) -> OrtValue:
        length = self.capacity if self.shared else 0
        sizes = [size if isinstance(size, int) else length for size in shape]
        return OrtValue.ortvalue_from_numpy(np.zeros(sizes, dtype))


def _present(name: str) -> str:
    return name.replace("past_", "present_", 1)


def _load(path: Path, threads: int) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    try:
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the engine's own exceptions have no common base
        why = f"ONNX Runtime {onnxruntime.__version__} cannot load it: {str(error).splitlines()[0]}"
        raise DamagedFileError(path, why, "export the bundle again") from error
