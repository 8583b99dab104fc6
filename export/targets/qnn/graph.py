"""A user's own graph for an NPU."""

from __future__ import annotations

from pathlib import Path

from edgeglm.devices.profile import Profile

SIZED = False


def prove(file: Path, original: Path, profile: Profile, work: Path) -> tuple[str | None, str | None]:
    """Return that the graph is not compiled."""
    return None, "the graph has the form that the NPU takes, but it is not compiled for it: it is for the CPU"
