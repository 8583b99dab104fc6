"""Table of the engines: what each is called, what it reads, where it computes and what it can do.

Both sides derive from it what depends on an engine, so that no other file knows one by its name. An engine's code is in
a folder of its name on each side, with the same files in it: ``runtimes/engines/NAME/`` on the device, where
``engine.py`` has the functions of `edgeglm.runtimes.core.session.EngineModule`, and ``export/targets/NAME/`` on the
host.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

EngineName = Literal["ort", "qnn", "litert", "tensorrt"]
Placement = Literal["npu", "gpu", "cpu"]
Format = Literal["onnx", "rows", "tflite"]
Dialect = Literal["ort", "portable", "qdq"]


@dataclass(frozen=True)
class GraphKind:
    """The graphs of a dialect.

    Args:
        name: Of the dialect, in manifests.
        opset: ONNX's.
        contrib: Whether it has ONNX Runtime's own operators, which other engines do not know.
        integers: Whether all values are codes in calibrated ranges.
        traced: The dialect that it is traced in, and lowered from; itself if None.
    """

    name: Dialect
    opset: int
    contrib: bool = False
    integers: bool = False
    traced: Dialect | None = None

    @property
    def is_plain(self) -> bool:
        """Whether it computes with ONNX's own operators in floating point."""
        return not self.contrib and not self.integers


@dataclass(frozen=True)
class Engine:
    """An engine.

    Args:
        name: In profiles and manifests.
        title: In messages.
        placement: Where it computes.
        reads: The format of its modules.
        dialect: Of the graphs that it is given.
        distribution: The Python package that it is installed as.
        libraries: The Python modules that it may be.
        fallback: The engine that runs its modules where it is not there; None where no other reads them.
        half: Whether it computes fp16 as it is; one that widens it drops the roundings.
        norms_as_operators: Whether it computes norms wrong that are not one operator each.
        gives_state: Whether keys and values can be read and written.
        shapes: Whether a module may have several graphs over one file of weights.
        builds: Whether its modules are built on the device.
        skips_zeros: Whether it has kernels for weights of which two in four are zero, in fp16 and INT8.
        toolchain: Whether a profile says for which version, in ``toolchain.NAME``.
        maps_device_memory: Whether it takes more of the address space than of the memory, which then has no limit.
        made_by: The Python packages that make its modules, beside those of every export.
        loaded: Bytes that a session keeps for a byte of weights; by the precision if None.
    """

    name: EngineName
    title: str
    placement: Placement
    reads: Format
    dialect: Dialect
    distribution: str
    libraries: tuple[str, ...]
    fallback: EngineName | None = None
    half: bool = False
    norms_as_operators: bool = False
    gives_state: bool = False
    shapes: bool = False
    builds: bool = False
    skips_zeros: bool = False
    toolchain: bool = False
    maps_device_memory: bool = False
    made_by: tuple[str, ...] = ()
    loaded: float | None = None

    @property
    def place(self) -> str:
        """The engine and where it computes, for reports."""
        return f"{self.title} on the {self.placement.upper()}"

    @property
    def everywhere(self) -> Engine:
        """The engine that runs its modules on any machine: itself, or its fallback."""
        return ENGINES[self.fallback] if self.fallback else self


DIALECTS: dict[Dialect, GraphKind] = {
    dialect.name: dialect
    for dialect in (
        GraphKind("ort", opset=23, contrib=True),
        GraphKind("portable", opset=20),
        GraphKind("qdq", opset=20, integers=True, traced="portable"),
    )
}
ENGINES: dict[EngineName, Engine] = {
    engine.name: engine
    for engine in (
        Engine(
            "ort", "ONNX Runtime", "cpu", "onnx", "ort", "onnxruntime", ("onnxruntime",), gives_state=True, shapes=True
        ),
        Engine(
            "qnn", "QNN HTP", "npu", "onnx", "qdq", "onnxruntime-qnn", ("onnxruntime_qnn",),
            fallback="ort", norms_as_operators=True, toolchain=True, loaded=1.1,
        ),
        Engine(
            "litert", "LiteRT", "cpu", "tflite", "portable", "ai-edge-litert", ("ai_edge_litert",),
            made_by=("litert-torch", "litert-converter", "ai-edge-quantizer", "ai-edge-litert"), loaded=1.1,
        ),
        Engine(
            "tensorrt", "TensorRT", "gpu", "onnx", "portable", "tensorrt", ("tensorrt", "tensorrt_rtx"),
            fallback="ort", half=True, shapes=True, builds=True, skips_zeros=True, toolchain=True,
            maps_device_memory=True, loaded=1.1,
        ),
    )
}  # fmt: skip
# The format of modules, unless another is asked for.
USUAL_FORMAT: Format = "onnx"
# CUDA's context and TensorRT's workspace; the NPU's driver and its working memory. Not measured: no board was at hand.
ACCELERATOR_BYTES: dict[Placement, int] = {"cpu": 0, "gpu": 512 << 20, "npu": 128 << 20}


def engine_for(
    placement: Placement, preferred: Iterable[EngineName] = (), reads: Format = USUAL_FORMAT
) -> Engine | None:
    """Return the first of the preferred engines, else of all, that computes there and reads the format."""
    candidates = (ENGINES[name] for name in (*preferred, *ENGINES))
    return next((engine for engine in candidates if engine.placement == placement and engine.reads == reads), None)
