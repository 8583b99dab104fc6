"""Open an export: the checkpoint, the samples and the gate of what the user asks for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from edgeglm.devices.loader import load_profile
from edgeglm.errors import UsageError
from edgeglm.export.calibrate.calibrator import read_calibration
from edgeglm.export.checkpoint.locate import locate, locate_headers
from edgeglm.export.checkpoint.reader import Checkpoint
from edgeglm.export.pipeline.gate import open_gate
from edgeglm.export.pipeline.job import Job
from edgeglm.export.prepare.asked import asked
from edgeglm.export.requests import ExportRequest, SearchRequest
from edgeglm.export.write.target import check_target


def open_job(request: ExportRequest, budget: int) -> Job:
    """Return an export that is ready to run.

    Args:
        request: Of a checkpoint.
        budget: Bytes of memory.

    Raises:
        EdgeglmError: The model, the device, an option, the samples or the folder is wrong.
    """
    profile, (source, name) = load_profile(request.target), locate(request.model)
    if request.model == name and not any(source.glob("*.safetensors")):
        with locate_headers(name) as (names, _):  # which has the names of all files of a repository
            Checkpoint.open(names, headers_only=True)
    equalizes = request.equalization == "on"
    if not equalizes and request.calibration is None:
        why = "has nothing to switch off: a calibration moves scales, and there is none"
        raise UsageError("--equalization off", why, "give --calibration FILE, or leave it out")
    opened = replace(asked(request, profile, source, name), format=request.format, equalizes=equalizes)
    folder = request.output or Path(f"{opened.name.rpartition('/')[2]}-{opened.profile.name}")
    check_target(folder)
    calibration, allowed = request.calibration, request.accuracy_drop
    samples, held_out = read_calibration(calibration, opened.folder) if calibration else ([], [])
    limit = request.limit if isinstance(request, SearchRequest) else None
    gate = None if allowed is None else open_gate(opened, allowed, calibration, samples, budget, limit)
    return Job(opened, folder, samples, held_out, gate, budget)
