"""The request of an export, from what the user asks for."""

from __future__ import annotations

from pathlib import Path

from edgeglm.devices.profile import Profile
from edgeglm.export.checkpoint.locate import locate
from edgeglm.export.prepare.types import Request
from edgeglm.export.requests import PlanRequest
from edgeglm.export.samples.shipped import DEMO_DATA


def asked(request: PlanRequest, profile: Profile, folder: Path, name: str) -> Request:
    """Return the request for a checkpoint.

    Args:
        request: The options.
        profile: Of the device.
        folder: Of the checkpoint, or of its headers.
        name: The model's name.

    Raises:
        UsageError: There is no such adapter.
    """
    sizes = tuple(dict.fromkeys(request.image_sizes))
    adapter = None if request.adapter is None else locate(request.adapter)[0]
    shipped = DEMO_DATA if request.model is None else None
    return Request(
        folder, name, profile, request.precision, request.context, sizes, shipped, adapter=adapter,
        prefixes=request.prefixes, kv=request.kv,
    )  # fmt: skip
