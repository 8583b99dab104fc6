"""The answer of ``edgeglm plan``: plain data, which a worker gives."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Blocker:
    """A reason that a module cannot be used on the target, and what to do."""

    module: str
    reason: str
    remedy: str


@dataclass(frozen=True)
class Option:
    """A precision: the bundle's bytes, the device's peak by context, and whether that fits."""

    precision: str
    bundle_bytes: int
    device_peak_rss_bytes: dict[int, int]
    fits: bool


@dataclass(frozen=True)
class Forecast:
    """The answer of ``edgeglm plan``, about a model by its name on a target with so many usable bytes of memory.

    ``calibration_disk_bytes`` are temporary, of an export with ``--calibration``.
    """

    model: str
    target: str
    usable_bytes: int
    fits: bool
    context: int
    export_peak_rss_bytes: int
    chosen: Option
    options: tuple[Option, ...]
    blockers: tuple[Blocker, ...]
    notes: tuple[str, ...]
    recommended: str | None
    calibration_disk_bytes: int = 0
