"""Plan, export, search, compress, validate and build as functions: what the command line, ladder and matrix call.

    from edgeglm.export.api import ExportRequest, export

    made = export(ExportRequest(target="rpi5", accuracy_drop=0.02), show=print)
    print(made.bundle, made.peak_rss_bytes, made.notes)

Each takes a frozen request, tells `show` how far it is, and returns a typed result. What a user can cause is an
`EdgeglmError` with its parts: ``what``, ``why``, ``remedy`` and ``exit_code``. Each function imports what it needs when
it is called: `validate` alone brings torch into the process, for what the cache does not know of the original.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

# Before numpy is loaded: encoders and proofs have threads of their own, which those of a product would only disturb.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from dataclasses import replace
from importlib.util import find_spec

import msgspec

from edgeglm.devices.loader import load_profile
from edgeglm.engines import USUAL_FORMAT
from edgeglm.errors import UsageError
from edgeglm.export.checkpoint.locate import locate_headers
from edgeglm.export.cluster import check_cluster
from edgeglm.export.metric import Metric
from edgeglm.export.predict.answer import Forecast
from edgeglm.export.requests import (
    BuildRequest,
    CompressRequest,
    CompressResult,
    ExportRequest,
    ExportResult,
    PlanRequest,
    Progress,
    SearchRequest,
    Show,
    ValidateRequest,
    ValidateResult,
)
from edgeglm.machine import memory_budget
from edgeglm.memory import MemorySampler
from edgeglm.runtimes.engines.tensorrt.build import BuildResult, build_engines

__all__ = [
    "BuildRequest",
    "BuildResult",
    "CompressRequest",
    "CompressResult",
    "ExportRequest",
    "ExportResult",
    "Forecast",
    "Metric",
    "PlanRequest",
    "Progress",
    "SearchRequest",
    "ValidateRequest",
    "ValidateResult",
    "build",
    "compress",
    "export",
    "plan",
    "search",
    "validate",
]


def plan(request: PlanRequest) -> Forecast:
    """Predict the export's memory and whether the bundle fits the device, from the headers alone.

    Raises:
        UsageError: The model, the device or an option is wrong.
        UnsupportedError: The model or its precision has no place on the device.
        DamagedFileError: The checkpoint cannot be read.
    """
    from edgeglm.export.predict.forecast import forecast
    from edgeglm.export.prepare.asked import asked

    if request.model is not None and _is_graph(request.model):
        return _plan_graph(request)
    profile = load_profile(request.target)
    with locate_headers(request.model) as (folder, name):
        return forecast(asked(request, profile, folder, name))


def export(request: ExportRequest, show: Show = lambda progress: None) -> ExportResult:
    """Write a bundle.

    Raises:
        UsageError: The model, the device, an option or the folder is wrong.
        UnsupportedError: The model or its precision has no place on the device.
        AccuracyError: What was emitted computes garbage, or (`NothingPassed`) drops more than is allowed.
        BudgetError: It does not fit the memory or the disk.
        DamagedFileError: The checkpoint cannot be read.
    """
    start, budget = time.monotonic(), memory_budget(request.max_ram)
    run = _export_graph if request.model is not None and _is_graph(request.model) else _export_checkpoint
    with MemorySampler() as memory:
        result = run(request, budget, lambda progress: show(replace(progress, rss_bytes=memory.rss_bytes)))
    seconds = time.monotonic() - start
    return msgspec.structs.replace(result, peak_rss_bytes=memory.peak_bytes, seconds=seconds)


def compress(request: CompressRequest, show: Show = lambda progress: None) -> CompressResult | None:
    """Write a smaller checkpoint; None comes from a process of torchrun's that only helps.

    Raises:
        UsageError: The model, a rate, the samples or the folder is wrong.
        UnsupportedError: The model, or a config of it with fewer heads, is not possible.
        BudgetError: It does not fit the memory or the disk.
        DamagedFileError: The checkpoint cannot be read.
    """
    from edgeglm.export.compress.compress import compress as made

    start, budget = time.monotonic(), memory_budget(request.max_ram)
    with MemorySampler() as memory:
        result = made(request, budget, lambda progress: show(replace(progress, rss_bytes=memory.rss_bytes)))
    return result and msgspec.structs.replace(
        result, peak_rss_bytes=memory.peak_bytes, seconds=time.monotonic() - start
    )


def search(request: SearchRequest, show: Show = lambda progress: None) -> ExportResult:
    """Write the best bundle that passes ``accuracy_drop``; raises as `export`, and UsageError for a study of others."""
    if request.accuracy_drop is None:
        raise UsageError("search", "takes a drop that bundles may have", "give --accuracy-drop")
    if request.model is not None and _is_graph(request.model):
        raise UsageError(request.model, "is a graph: a search is of checkpoints", "export it with --max-error")
    if find_spec("optuna") is None:
        raise UsageError("search", "Optuna is not installed", "pip install 'edgeglm[search]'")
    check_cluster(request.cluster)
    if request.via is not None:
        _check_board(request, request.via)
    return export(request, show)


def _check_board(request: SearchRequest, via: str) -> None:
    from edgeglm.export.burn.figures import check_board

    if request.goal == "size":
        raise UsageError("--via", "has nothing to measure: a size is known", "add --for latency or --for memory")
    if request.cluster is not None:
        raise UsageError("--via", "is one board, which a cluster cannot share", "leave out --cluster")
    check_board(via, request.python)


def validate(request: ValidateRequest, show: Show = lambda progress: None) -> ValidateResult:
    """Compare a bundle with its original on its task; `ValidateResult.check` raises where it lost too much.

    Raises:
        UsageError: The bundle, the original, the data or an option is wrong.
        UnsupportedError: The data is not for this model, or an engine is missing.
        BudgetError: It does not fit the memory.
        DamagedFileError: A file cannot be read.
    """
    from edgeglm.export.evaluate.comparison import compare

    return compare(request, memory_budget(request.max_ram), show)


def build(request: BuildRequest, show: Show = lambda progress: None) -> BuildResult:
    """Build a bundle's TensorRT engines; raises as `build_engines`."""
    return build_engines(request.bundle, request.sm, lambda file, done: show(Progress(f"building {file}", done)))


def _export_checkpoint(request: ExportRequest, budget: int, show: Show) -> ExportResult:
    from edgeglm.export.pipeline.opening import open_job

    if request.max_error is not None:
        raise UsageError("--max-error", "is only for ONNX graphs", "give --accuracy-drop")
    job = open_job(request, budget)
    if isinstance(request, SearchRequest):
        from edgeglm.export.search.trials import searching

        job = searching(job, request, show)
    expected = job.expected()
    notes, rungs = job.run(show, resume=request.resume)
    return ExportResult(bundle=job.folder, notes=notes, rungs=rungs, predicted_peak_rss_bytes=expected, max_ram=budget)


def _export_graph(request: ExportRequest, budget: int, show: Show) -> ExportResult:
    from edgeglm.export.foreign.graph_bundle import export_graph
    from edgeglm.export.foreign.plan.graph_plan import GraphRequest, open_graph
    from edgeglm.export.foreign.read.quiet import quiet
    from edgeglm.export.write.target import check_target
    from edgeglm.runtimes.core.heap import bound_heap
    from edgeglm.scratch import scratch_folder

    others = {
        "--accuracy-drop": request.accuracy_drop is not None,
        "--equalization": request.equalization != "on",
        "--no-resume": not request.resume,
    }
    _refuse_options({**_for_checkpoints(request), **others})
    if request.format != USUAL_FORMAT:
        raise UsageError(
            f"--format {request.format}", "is not available for ONNX graphs, which stay ONNX", "leave it out"
        )
    graph = GraphRequest(
        Path(str(request.model)),
        load_profile(request.target),
        request.precision,
        request.calibration,
        request.max_error,
    )
    folder = request.output or Path(f"{graph.name}-{graph.profile.name}")
    check_target(folder)
    bound_heap()
    with scratch_folder("graph") as work, quiet():
        opened = open_graph(graph, budget, work)
        _, fixes, notes = export_graph(opened, folder, work, lambda stage, done: show(Progress(stage, done)))
    return ExportResult(
        bundle=folder, notes=notes, fixes=fixes, predicted_peak_rss_bytes=opened.peak_bytes, max_ram=budget
    )


def _plan_graph(request: PlanRequest) -> Forecast:
    from edgeglm.export.foreign.plan.graph_forecast import forecast_graph
    from edgeglm.export.foreign.plan.graph_plan import GraphRequest
    from edgeglm.export.foreign.read.quiet import quiet
    from edgeglm.scratch import scratch_folder

    _refuse_options(_for_checkpoints(request))
    with scratch_folder("graph") as work, quiet():
        return forecast_graph(
            GraphRequest(Path(str(request.model)), load_profile(request.target), request.precision), work
        )


def _for_checkpoints(request: PlanRequest) -> dict[str, bool]:
    """Return the options that do nothing for a graph, and whether each is given."""
    return {
        "--context": request.context is not None,
        "--image-size": bool(request.image_sizes),
        "--adapter": request.adapter is not None,
        "--prefix": bool(request.prefixes),
        "--kv": request.kv != "fp32",
    }


def _refuse_options(given: dict[str, bool]) -> None:
    for option, is_given in given.items():
        if is_given:
            raise UsageError(option, "is only for checkpoints", "leave it out")


def _is_graph(model: str) -> bool:
    """Return whether the user names a file, such as a graph in ONNX, not a checkpoint."""
    return model.endswith((".onnx", ".pt2")) or Path(model).is_file()
