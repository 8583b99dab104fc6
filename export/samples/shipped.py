"""Locate the data that ships with the demo, the model that is meant where none is named: paths alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from edgeglm.export.checkpoint.locate import DEMO
from edgeglm.manifest import PHONE_AGENT


@dataclass(frozen=True)
class Shipped:
    """Data that ships with a model.

    Args:
        folder: Of all of it.
        calibration: Samples to calibrate with.
        evaluation: Held-out samples to judge on.
        self_test: Probes with the original's answers, whose images are relative to the folder.
        task: What its answers are, as the manifest says it.
    """

    folder: Path
    calibration: Path
    evaluation: Path
    self_test: Path
    task: Literal["phone-agent"] | None = None


DATA = DEMO.with_name("data")
DEMO_DATA = Shipped(DATA, DATA / "calibration.jsonl", DATA / "evaluation.jsonl", DATA / "self-test.json", PHONE_AGENT)
