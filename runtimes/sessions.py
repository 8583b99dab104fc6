"""Sessions of a bundle's modules, on the engine that each was made for where this machine has it.

A module for TensorRT is plain ONNX, and was proven on ONNX Runtime: without a GPU, or without TensorRT, it runs there.
So does one for an NPU, from the quantized ONNX that was compiled for it. One in TFLite always runs on the CPU.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

from edgeglm.bundle import Bundle
from edgeglm.devices.profile import Engine
from edgeglm.errors import UnsupportedError
from edgeglm.manifest import Module
from edgeglm.runtimes import litert, ort, qnn, tensorrt
from edgeglm.runtimes.cuda import Gpu
from edgeglm.runtimes.engines import engine_for
from edgeglm.runtimes.litert_weights import litert_files
from edgeglm.runtimes.progress import progress_line
from edgeglm.runtimes.session import DecoderSession, EncoderSession
from edgeglm.runtimes.tensorrt_library import Library, load_library


def engine_of(module: Module) -> Engine:
    """Which engine runs a module here."""
    if module.engine == "litert":
        return "litert"
    if module.engine == "qnn":
        return "qnn" if qnn.npu_for(module)[0] else "ort"
    return "tensorrt" if module.engine == "tensorrt" and _has_tensorrt() else "ort"


def note_of(module: Module) -> str | None:
    """What a report says of where a module ran, if there is something to say."""
    if module.engine == "litert" and module.compiled:
        return f"{module.name} ran on the CPU: {litert.NO_DISPATCH}"
    if module.engine != "qnn":
        return None
    npu, why = qnn.npu_for(module)
    if npu is None:
        return f"{module.name} ran on the CPU, from the quantized ONNX: {why}"
    return f"{module.name} ran on the NPU's simulator, whose time is not the device's" if npu.is_simulator else None


def open_encoder(bundle: Bundle, module: Module, threads: int) -> EncoderSession:
    """A module without a state. Raises as its engine does."""
    if module.engine == "qnn" and (npu := qnn.npu_for(module)[0]) and module.compiled:
        return qnn.Encoder(npu, bundle.path(module.compiled.file), qnn.chip_of(bundle.manifest.profile))
    if engine_of(module) == "tensorrt":
        return tensorrt.Encoder(*_built(bundle, module))
    if module.engine == "litert":
        return litert.Encoder(litert_files(bundle, module, threads))
    return ort.Encoder(bundle.path(module.file), threads)


def open_decoder(bundle: Bundle, module: Module, threads: int, capacity: int) -> DecoderSession:
    """A decoder with room for `capacity` tokens. Raises as its engine does."""
    if engine_of(module) == "tensorrt":
        return tensorrt.Decoder(*_built(bundle, module), capacity)
    if module.engine == "litert":
        return litert.Decoder(litert_files(bundle, module, threads), capacity)
    return ort.Decoder(bundle.path(module.file), threads, capacity)


@cache
def _has_tensorrt() -> bool:
    """Whether there is a GPU and a TensorRT for it."""
    try:
        gpu, library = Gpu(), load_library()
    except UnsupportedError:
        return False
    gpu.close()
    return library.builds_for(gpu.sm)


def _built(bundle: Bundle, module: Module) -> tuple[Gpu, Library, Path]:
    """The GPU, TensorRT, and the module's engine, which the first start builds."""
    gpu, library = Gpu(), load_library()
    with progress_line(f"building {module.name} for {gpu.name}") as show:
        return gpu, library, engine_for(bundle, module, library, gpu.sm, show).path
