"""Sessions of a bundle's modules, on the engine that each was made for where this machine has it.

A module for TensorRT is plain ONNX, and was proven on ONNX Runtime: without a GPU, or without TensorRT, it runs there.
So does one for an NPU, from the quantized ONNX that was compiled for it. One in TFLite always runs on the CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import TypeVar

from edgeglm.bundle import Bundle
from edgeglm.devices.profile import Engine
from edgeglm.errors import DamagedFileError, UnsupportedError
from edgeglm.manifest import Module
from edgeglm.runtimes.core.progress import progress_line
from edgeglm.runtimes.core.session import DecoderSession, EncoderSession
from edgeglm.runtimes.engines.litert import engine as litert
from edgeglm.runtimes.engines.litert.weights import litert_files
from edgeglm.runtimes.engines.ort import engine as ort
from edgeglm.runtimes.engines.qnn import engine as qnn
from edgeglm.runtimes.engines.tensorrt import engine as tensorrt
from edgeglm.runtimes.engines.tensorrt.cache import engine_for
from edgeglm.runtimes.engines.tensorrt.cuda import Gpu
from edgeglm.runtimes.engines.tensorrt.library import Library, load_library

OrtSession = TypeVar("OrtSession", ort.Encoder, ort.Decoder)


def engine_of(module: Module) -> Engine:
    """Return which engine runs a module here."""
    if module.engine == "litert":
        return "litert"
    if module.engine == "qnn":
        return "qnn" if qnn.npu_for(module)[0] else "ort"
    return "tensorrt" if module.engine == "tensorrt" and _has_tensorrt() else "ort"


def note_of(module: Module) -> str | None:
    """Return what a report says of where a module ran, if there is something to say."""
    if module.engine == "litert" and module.compiled:
        return f"{module.name} ran on the CPU: {litert.NO_DISPATCH}"
    if module.engine != "qnn":
        return None
    npu, why = qnn.npu_for(module)
    if npu is None:
        return f"{module.name} ran on the CPU, from the quantized ONNX: {why}"
    return f"{module.name} ran on the NPU's simulator, whose time is not the device's" if npu.is_simulator else None


def open_encoder(bundle: Bundle, module: Module, threads: int) -> EncoderSession:
    """Open a module without a state. Raises as its engine does; DamagedFileError if a file has changed."""
    with bundle.opening(module.name):
        return _open_encoder(bundle, module, threads)


def open_decoder(bundle: Bundle, module: Module, threads: int, capacity: int) -> DecoderSession:
    """Return a decoder with room for `capacity` tokens. Raises as `open_encoder`."""
    with bundle.opening(module.name):
        return _open_decoder(bundle, module, threads, capacity)


def open_ort_decoder(path: Path, module: Module, threads: int, capacity: int) -> ort.Decoder:
    """Return a decoder on ONNX Runtime, from whatever file holds its graph. Raises DamagedFileError."""
    return _as_described(path, module, lambda: ort.Decoder(path, threads, capacity))


def _open_encoder(bundle: Bundle, module: Module, threads: int) -> EncoderSession:
    if module.engine == "qnn" and (npu := qnn.npu_for(module)[0]) and module.compiled:
        return qnn.Encoder(npu, bundle.path(module.compiled.file), qnn.chip_of(bundle.manifest.profile))
    if engine_of(module) == "tensorrt":
        return tensorrt.Encoder(*_built(bundle, module))
    if module.engine == "litert":
        return litert.Encoder(litert_files(bundle, module, threads))
    path = bundle.path(module.file)
    return _as_described(path, module, lambda: ort.Encoder(path, threads))


def _open_decoder(bundle: Bundle, module: Module, threads: int, capacity: int) -> DecoderSession:
    if engine_of(module) == "tensorrt":
        return tensorrt.Decoder(*_built(bundle, module), capacity)
    if module.engine == "litert":
        return litert.Decoder(litert_files(bundle, module, threads), capacity)
    return open_ort_decoder(bundle.path(module.file), module, threads, capacity)


def _as_described(path: Path, module: Module, open_: Callable[[], OrtSession]) -> OrtSession:
    """Return a session whose inputs and outputs are those of the manifest."""
    remedy = "export the bundle again"
    try:
        opened = open_()
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise DamagedFileError(path, f"is no {module.name}: {type(error).__name__}: {error}", remedy) from error
    for kind, tensors, values in (
        ("input", module.inputs, opened.session.get_inputs()),
        ("output", module.outputs, opened.session.get_outputs()),
    ):
        shapes = {value.name: value.shape for value in values}
        if shapes.keys() != {tensor.name for tensor in tensors}:
            raise DamagedFileError(path, f"has other {kind}s than the manifest lists", remedy)
        for tensor in tensors:
            if not _agree(shapes[tensor.name], tensor.shape):
                why = f"its {kind} {tensor.name} is {shapes[tensor.name]}, and {list(tensor.shape)} in the manifest"
                raise DamagedFileError(path, why, remedy)
    return opened


def _agree(shape: Sequence[object], described: Sequence[object]) -> bool:
    """Return whether two shapes have the same sizes; a name stands for any."""
    pairs = zip(shape, described, strict=False)
    sized = all(left == right for left, right in pairs if isinstance(left, int) and isinstance(right, int))
    return len(shape) == len(described) and sized


@cache
def _has_tensorrt() -> bool:
    """Return whether there is a GPU and a TensorRT for it."""
    try:
        gpu, library = Gpu(), load_library()
    except UnsupportedError:
        return False
    gpu.close()
    return library.builds_for(gpu.sm)


def _built(bundle: Bundle, module: Module) -> tuple[Gpu, Library, Path]:
    """Return the GPU, TensorRT, and the module's engine, which the first start builds."""
    gpu, library = Gpu(), load_library()
    with progress_line(f"building {module.name} for {gpu.name}") as show:
        return gpu, library, engine_for(bundle, module, library, gpu.sm, show).path
