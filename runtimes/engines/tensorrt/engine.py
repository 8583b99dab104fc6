"""TensorRT on an NVIDIA GPU: encoders, and decoders whose keys and values stay in the GPU's memory.

Written against the interface of TensorRT 10; on a machine without a GPU the tests reach the first call of the driver.
"""

from __future__ import annotations

import mmap
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeglm.bundle import Bundle
from edgeglm.engines import ENGINES
from edgeglm.errors import UnsupportedError
from edgeglm.manifest import Module
from edgeglm.runtimes.core.progress import progress_line
from edgeglm.runtimes.core.session import Feeds, LastLogitsOnly, check_last
from edgeglm.runtimes.engines.tensorrt.cache import engine_for
from edgeglm.runtimes.engines.tensorrt.cuda import Gpu
from edgeglm.runtimes.engines.tensorrt.key_values import KeyValues
from edgeglm.runtimes.engines.tensorrt.library import Library, load_library, new_log, reason
from edgeglm.runtimes.inputs.positions import causal_mask

DTYPES: dict[str, type[np.generic]] = {
    "FLOAT": np.float32,
    "HALF": np.float16,
    "INT64": np.int64,
    "INT32": np.int32,
}
Shape = tuple[int, ...]


def available(module: Module, inputs: int = 1) -> bool:
    """Return whether there is a GPU and a TensorRT for it."""
    return _is_here()


def place(module: Module, inputs: int) -> str:
    """Return the GPU, or what runs the module where there is none."""
    engine = ENGINES["tensorrt"]
    return engine.place if _is_here() else engine.everywhere.place


def note(module: Module) -> str | None:
    """Return None: its modules run where their names say, or as they were proven, in ONNX Runtime."""
    return None


def version() -> str:
    """Return the library, and the GPU's compute capability."""
    gpu = Gpu()
    gpu.close()
    return f"{load_library().title} sm{gpu.sm}"


def open_encoder(bundle: Bundle, module: Module, threads: int) -> Encoder:
    """Open a module without a state, whose engine the first start builds. Raises as `engine_for`."""
    return Encoder(*_built(bundle, module))


def open_decoder(bundle: Bundle, module: Module, threads: int, capacity: int, *, low_rss: bool) -> Decoder:
    """Open a decoder, whose weights are in the GPU's memory. Raises as `engine_for`."""
    return Decoder(*_built(bundle, module), capacity)


@cache
def _is_here() -> bool:
    try:
        gpu, library = Gpu(), load_library()
    except UnsupportedError:
        return False
    gpu.close()
    return library.builds_for(gpu.sm)


def _built(bundle: Bundle, module: Module) -> tuple[Gpu, Library, Path]:
    """Return the GPU, TensorRT, and the module's engine."""
    gpu, library = Gpu(), load_library()
    with progress_line(f"building {module.name} for {gpu.name}") as show:
        return gpu, library, engine_for(bundle, module, library, gpu.sm, show).path


class Encoder:
    """A module without a state."""

    def __init__(self, gpu: Gpu, library: Library, path: Path) -> None:
        self.module = LoadedEngine(gpu, library, path)

    def run(self, feeds: Feeds) -> dict[str, NDArray[Any]]:
        """Return the outputs by name."""
        return self.module.run({name: feeds[name] for name in self.module.inputs}, self.module.outputs)

    def close(self) -> None:
        """Give engine, buffers and GPU back."""
        self.module.close()


class Decoder(LastLogitsOnly):
    """A decoder of the portable dialect with room for `capacity` tokens."""

    def __init__(self, gpu: Gpu, library: Library, path: Path, capacity: int) -> None:
        self.module = LoadedEngine(gpu, library, path)
        rows = {name: shape for name, shape in self.module.inputs.items() if name.startswith("past_")}
        sizes = {name: np.dtype(self.module.dtype(name)).itemsize for name in rows}
        self.state = KeyValues(
            gpu, {name: (shape[1], shape[3] * sizes[name]) for name, shape in rows.items()}, capacity
        )

    @property
    def length(self) -> int:
        """The number of tokens in it."""
        return self.state.length

    @property
    def state_bytes(self) -> int:
        """Bytes of both buffers of all keys and values."""
        return self.state.bytes

    def step(self, hidden: NDArray[np.float32], position_ids: NDArray[np.int64], last: int = 1) -> NDArray[np.float32]:
        """Return the logits (1, vocabulary) of the last token. Raises ValueError if more are asked for."""
        count, past = hidden.shape[1], self.length
        check_last(last, count, self.max_last)
        for name, (now, following) in self.state.buffers.items():
            one, heads, _, width = self.module.inputs[name]
            self.module.bind(name, now, (one, heads, past, width))
            self.module.bind(name.replace("past_", "present_", 1), following)
        feeds: Feeds = {"hidden": hidden, "position_ids": position_ids, "mask": causal_mask(count, past + count)}
        outputs = self.module.run({name: feeds[name] for name in feeds if name in self.module.inputs}, ["logits"])
        self.state.advance(count)
        logits: NDArray[np.float32] = outputs["logits"].astype(np.float32).reshape(1, -1)
        return logits

    def reserve(self, capacity: int) -> None:
        """Make room for more tokens."""
        self.state.reserve(capacity)

    def truncate(self, length: int) -> None:
        """Forget all tokens but the first `length`."""
        self.state.truncate(length)

    def close(self) -> None:
        """Give engine, buffers and GPU back."""
        self.state.close()
        self.module.close()


class LoadedEngine:
    """An engine in the GPU's memory, with a buffer for each tensor that goes to the GPU and comes back.

    ``inputs`` and ``outputs`` have the shape of each tensor, in which -1 stands for a dimension that varies.
    """

    def __init__(self, gpu: Gpu, library: Library, path: Path) -> None:
        self.gpu, self._log = gpu, new_log(library)
        trt = library.module
        self._runtime = trt.Runtime(self._log)
        # From a map of the file, whose pages the kernel may drop: the bytes need not be in memory twice.
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            self._engine = self._runtime.deserialize_cuda_engine(data)
        if self._engine is None:
            why = f"{library.title} cannot load it: {reason(self._log.errors)}"
            raise UnsupportedError(path, why, "delete it, and it is built again")
        self._context = self._engine.create_execution_context()
        if self._context is None:
            why = f"{library.title} cannot run it: {reason(self._log.errors)}"
            raise UnsupportedError(path, why, "free memory of the GPU")
        names = [self._engine.get_tensor_name(index) for index in range(self._engine.num_io_tensors)]
        is_input = {name: self._engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT for name in names}
        shapes: dict[str, Shape] = {name: tuple(self._engine.get_tensor_shape(name)) for name in names}
        self.inputs: Mapping[str, Shape] = {name: shapes[name] for name in names if is_input[name]}
        self.outputs: Mapping[str, Shape] = {name: shapes[name] for name in names if not is_input[name]}
        self._buffers: dict[str, tuple[int, int]] = {}  # address and size by name

    def dtype(self, name: str) -> type[np.generic]:
        """Return the type of a tensor's elements."""
        return DTYPES[self._engine.get_tensor_dtype(name).name]

    def bind(self, name: str, address: int, shape: Shape | None = None) -> None:
        """Say where a tensor lies, and an input's shape."""
        if shape is not None and not self._context.set_input_shape(name, shape):
            raise self._refusal(f"refuses the shape {shape} of {name}")
        self._context.set_tensor_address(name, address)

    def run(self, feeds: Feeds, wanted: Mapping[str, Shape] | list[str]) -> dict[str, NDArray[Any]]:
        """Run with these inputs, converted to the engine's types, and return the outputs that are wanted."""
        arrays = {name: np.ascontiguousarray(feeds[name], self.dtype(name)) for name in feeds}
        for name, array in arrays.items():
            address = self._buffer(name, array.nbytes)
            self.bind(name, address, array.shape)
            self.gpu.write(address, array)
        results = {name: np.empty(tuple(self._context.get_tensor_shape(name)), self.dtype(name)) for name in wanted}
        for name, array in results.items():
            self.bind(name, self._buffer(name, array.nbytes))
        if not self._context.execute_async_v3(self.gpu.stream):
            raise self._refusal("failed to start")
        for name, array in results.items():
            self.gpu.read(self._buffers[name][0], array)
        self.gpu.wait()
        return results

    def close(self) -> None:
        """Give engine, buffers and GPU back; TensorRT's objects go in the reverse order of their making."""
        for address, _ in self._buffers.values():
            self.gpu.free(address)
        self._buffers = {}
        del self._context
        del self._engine
        del self._runtime
        self.gpu.close()

    def _buffer(self, name: str, size: int) -> int:
        """Return the address of a tensor's buffer, which grows to the largest size that it was asked for."""
        address, room = self._buffers.get(name, (0, 0))
        if room < max(size, 1):
            if room:
                self.gpu.free(address)
            address, room = self.gpu.allocate(max(size, 1)), max(size, 1)
            self._buffers[name] = address, room
        return address

    def _refusal(self, what: str) -> UnsupportedError:
        return UnsupportedError("TensorRT", f"{what}: {reason(self._log.errors)}", "build the engine again")
