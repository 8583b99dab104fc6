"""Sessions of a bundle's modules, on the engine that each was made for where this machine has it.

A module for TensorRT is plain ONNX, and was proven on ONNX Runtime: without a GPU, or without TensorRT, it runs there.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

from edgeglm.bundle import Bundle
from edgeglm.devices.profile import Engine
from edgeglm.errors import UnsupportedError
from edgeglm.manifest import Module
from edgeglm.runtimes import litert, ort, tensorrt
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
    return "tensorrt" if module.engine == "tensorrt" and _has_tensorrt() else "ort"


def open_encoder(bundle: Bundle, module: Module, threads: int) -> EncoderSession:
    """A module without a state. Raises as its engine does."""
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
