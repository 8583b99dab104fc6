"""TFLite files in LiteRT, on the CPU.

Keys and values are buffers of the engine, in which each step writes its rows in place.
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import math
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeglm.errors import DamagedFileError, UnsupportedError
from edgeglm.scratch import scratch_folder

DECODE = "decode"
STATE = ("key_", "value_")
INSTALL = "pip install ai-edge-litert"


Form = tuple[tuple[int, ...], "np.dtype[Any]"]


class File:
    """A TFLite file in the engine.

    Args:
        path: The file.
        threads: Of each operator.
        weights: Where the engine keeps its packed weights, or finds them; in anonymous memory if None.

    Raises:
        DamagedFileError: The engine cannot load it.
        UnsupportedError: There is no LiteRT here, or a tflite-runtime beside it.
    """

    def __init__(self, path: Path, threads: int, weights: Path | None) -> None:
        check_library()
        with quiet() as said, scratch_folder("litert") as nowhere:
            try:
                self._open(path, threads, weights, str(nowhere))
            except Exception as error:  # the engine's own exceptions have no common base
                self._environment.close()
                why = f"LiteRT {version()} cannot load it: {_reason(said(), error)}"
                raise DamagedFileError(path, why, "export the bundle again") from error

    def _open(self, path: Path, threads: int, weights: Path | None, nowhere: str) -> None:
        compiled, environment, options = (importlib.import_module(f"ai_edge_litert.{name}") for name in MODULES)
        # Without a folder to look in, the engine loads the plug-ins of all vendors.
        self._environment = environment.Environment.create(
            runtime_path=nowhere, compiler_plugin_path=nowhere, dispatch_library_path=nowhere
        )
        cpu = options.CpuOptions(num_threads=threads, xnnpack_weight_cache_path=str(weights or ""))
        self._model = compiled.CompiledModel.from_file(
            str(path), environment=self._environment, options=options.Options(cpu_options=cpu)
        )
        self.signatures: Mapping[str, Mapping[str, Sequence[str]]] = self._model.get_signature_list()
        self._buffers: dict[tuple[str, str, bool], Any] = {}
        self._state: dict[str, Any] = {}
        self._touch()

    def inputs(self, signature: str) -> dict[str, Form]:
        """Return the shape and type of each input."""
        return _forms(self._model.get_input_tensor_details(signature))

    def outputs(self, signature: str) -> dict[str, Form]:
        """Return the shape and type of each output."""
        return _forms(self._model.get_output_tensor_details(signature))

    def make_state(self) -> int:
        """Make empty keys and values; returns their bytes."""
        total = 0
        for name, (shape, dtype) in self.inputs(DECODE).items():
            if name.startswith(STATE):
                self._state[name] = self._model.create_input_buffer_by_name(DECODE, name)
                empty = np.zeros(shape, dtype)
                self._state[name].write(empty)
                total += empty.nbytes
        return total

    def run(self, signature: str, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Return the outputs by name, without keys and values, which stay in the engine."""
        expected = self.inputs(signature)
        inputs, outputs = dict(self._state), dict(self._state)
        for name in expected.keys() - self._state.keys():
            shape, dtype = expected[name]
            inputs[name] = self._buffer(signature, name, is_output=False)
            inputs[name].write(np.ascontiguousarray(feeds[name], dtype).reshape(shape))
        given = self.outputs(signature)
        wanted = sorted(given.keys() - self._state.keys())
        outputs |= {name: self._buffer(signature, name, is_output=True) for name in wanted}
        self._model.run_by_name(signature, inputs, outputs)
        return {name: self._read(outputs[name], given[name][0]) for name in wanted}

    def close(self) -> None:
        """Give everything back."""
        with quiet():
            for buffer in (*self._buffers.values(), *self._state.values()):
                buffer.destroy()
            self._buffers, self._state = {}, {}
            self._model.close()
            del self._model, self._environment

    def _touch(self) -> None:
        """Write to a buffer for the first time, which makes the engine's environment print its messages here."""
        signature = next(iter(self.signatures))
        name, (shape, dtype) = min(self.inputs(signature).items(), key=lambda each: math.prod(each[1][0]))
        self._buffer(signature, name, is_output=False).write(np.zeros(shape, dtype))
        _silence_exit()

    def _buffer(self, signature: str, name: str, *, is_output: bool) -> Any:  # noqa: ANN401
        make = self._model.create_output_buffer_by_name if is_output else self._model.create_input_buffer_by_name
        key = (signature, name, is_output)
        if key not in self._buffers:
            self._buffers[key] = make(signature, name)
        return self._buffers[key]

    @staticmethod
    def _read(buffer: Any, shape: Sequence[int]) -> NDArray[np.float32]:  # noqa: ANN401
        array: NDArray[np.float32] = buffer.read(int(np.prod(shape)), np.float32)
        return array.reshape(tuple(shape))


MODULES = ("compiled_model", "environment", "options")


def check_library() -> None:
    """Check that LiteRT is installed and tflite-runtime, which is taken for it, is not. Raises UnsupportedError."""
    if importlib.util.find_spec("tflite_runtime"):
        why = "its last version computes garbage from INT8 models without an error, and nothing tells who will use it"
        raise UnsupportedError("tflite-runtime", why, f"pip uninstall tflite-runtime, then {INSTALL}")
    if importlib.util.find_spec("ai_edge_litert") is None:
        raise UnsupportedError("ai-edge-litert", "the bundle runs on it, and it is not installed", INSTALL)


def version() -> str:
    """Return LiteRT's version."""
    return metadata.version("ai-edge-litert")


@contextmanager
def quiet() -> Iterator[Callable[[], str]]:
    """Keep what the engine tells of itself from stdout and stderr; yields a function that gives what it has said."""
    flush = ctypes.CDLL(None).fflush

    def read() -> str:
        flush(None)
        said.seek(0)
        return said.read().decode(errors="replace")

    with ExitStack() as leave, tempfile.TemporaryFile() as said:
        for stream, descriptor in ((sys.stdout, 1), (sys.stderr, 2)):
            stream.flush()
            kept = os.dup(descriptor)
            leave.callback(os.close, kept)
            leave.callback(os.dup2, kept, descriptor)
            os.dup2(said.fileno(), descriptor)
        leave.callback(flush, None)
        yield read


@cache
def _silence_exit() -> None:
    """Close stderr when Python has ended, before the engine's destructors write to it."""
    libc = ctypes.CDLL(None)
    libc.__cxa_atexit(libc.close, ctypes.c_void_p(2), None)


def _reason(said: str, error: Exception) -> str:
    """Return the first error that the engine logged, else what it raised."""
    errors = [line.partition("ERROR: ")[2] for line in said.splitlines() if line.startswith("ERROR: ")]
    return (errors or str(error).splitlines() or ["no reason given"])[0]


def _forms(details: Mapping[str, Any]) -> dict[str, Form]:
    return {name: (tuple(tensor["shape"]), np.dtype(tensor["dtype"])) for name, tensor in details.items()}
