"""Build the TensorRT engines of a bundle, on the device that runs them; or for another GPU, to prove the graphs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec

from edgeglm.bundle import load_bundle, verify_bundle
from edgeglm.errors import UnsupportedError, UsageError
from edgeglm.manifest import Manifest, Module
from edgeglm.runtimes.engines.tensorrt.cache import Engine, engine_for
from edgeglm.runtimes.engines.tensorrt.cuda import Gpu
from edgeglm.runtimes.engines.tensorrt.library import Library, load_library


class BuildResult(msgspec.Struct, frozen=True, kw_only=True):
    """The engines of a bundle, each with its module, and what their being there proves."""

    bundle: Path
    engines: list[tuple[Module, Engine]]
    proof: str


def build_engines(folder: Path, sm: int | None, show: Callable[[str, float], None]) -> BuildResult:
    """Build all engines of a bundle that are not kept from an earlier build.

    Args:
        folder: The bundle.
        sm: A compute capability without the dot, to build without a GPU; None for the GPU that is here.
        show: Told the module's file, and how far its engine is, from 0 to 1.

    Raises:
        UsageError: It is no bundle, or has no module for TensorRT.
        DamagedFileError, UnsupportedError, BudgetError: As `engine_for`.
    """
    bundle = load_bundle(folder)
    made = [module for module in bundle.manifest.modules if module.engine == "tensorrt"]
    modules = [shape for module in made for shape in module.each_shape]
    if not modules:
        why = f"was exported for {bundle.manifest.profile.name}, and has no module for TensorRT"
        raise UsageError(folder, why, "run it as it is, or export it with --target jetson")
    verify_bundle(bundle)
    library, built_for = _builder(bundle.manifest, sm)
    engines = []
    for module in modules:

        def report(done: float, file: str = module.file) -> None:
            show(file, done)

        engines.append((module, engine_for(bundle, module, library, built_for, report)))
    proof = _proof(library, built_for, executable=sm is None)
    if bundle.manifest.provenance.is_two_of_four:
        proof += "; its 2:4 weights may take kernels that skip zeros"
    return BuildResult(bundle=folder, engines=engines, proof=proof)


def _builder(manifest: Manifest, sm: int | None) -> tuple[Library, int]:
    """TensorRT, and the compute capability to build for: the GPU's, or the one that was asked for."""
    if sm is not None:
        return load_library(["tensorrt_rtx"]), sm
    try:
        gpu = Gpu()
    except UnsupportedError as error:
        remedy = f"run it on {manifest.profile.title}; edgeglm build --sm 86 proves the graphs without a GPU"
        raise UnsupportedError(error.what, error.why, remedy) from error
    try:
        return load_library(), gpu.sm
    finally:
        gpu.close()


def _proof(library: Library, sm: int, *, executable: bool) -> str:
    """Return what the engines' being there shows, and what it does not."""
    if executable:
        return f"built for SM{sm} by {library.title}, for this GPU: edgeglm run executes them"
    return f"built for SM{sm} by {library.title}: graph, types, shapes and profiles proven, not executed"
