"""The demo's bundles, and a question to one of them."""

from __future__ import annotations

import fcntl
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from edgeglm.runtimes.core.answer import Answer
from edgeglm.runtimes.core.runner import Runner
from edgeglm.runtimes.core.sampling import Sampling
from edgeglm.runtimes.text.messages import message

DATA = Path(__file__).parents[2] / "export" / "demo" / "data"
SCREEN, OTHER_SCREEN = (DATA / "evaluation" / f"{index:04d}.webp" for index in (1, 2))

OK_BOX = (103.4, 486.5, 426.0, 544.1)  # of its button OK, in thousandths of the screen


def taps_ok(action: dict[str, Any]) -> bool:
    """Return whether an action, as the runner prints it, taps OK on SCREEN."""
    left, top, right, bottom = OK_BOX
    x, y = action["element"]
    return bool(action["action"] == "Tap" and left <= x <= right and top <= y <= bottom)


def demo_bundle(folder: Path, target: str, precision: str, format_: str = "onnx") -> Path:
    """Copy the demo's bundle, which is exported once for all processes of a run of the suite.

    Where there is no torch, EDGEGLM_TEST_BUNDLES may name a folder that has it.
    """
    kept = Path(os.environ["EDGEGLM_TEST_BUNDLES"], f"{target} {precision} {format_}")
    with open(f"{kept}.lock", "wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not kept.exists():
            exporter = pytest.importorskip("tests.runtimes.demo_export", reason="exports, which needs torch")
            exporter.export_demo(kept, target, precision, format_)
    shutil.copytree(kept, folder)
    return folder


def ask(
    folder: Path,
    prompt: str,
    image: Path | None = None,
    *,
    max_new_tokens: int = 128,
    sampling: Sampling | None = None,
    seed: int = 0,
) -> Answer:
    """What a fresh runner answers to one prompt."""
    with Runner(folder) as runner:
        messages = [message("user", prompt, image)]
        return runner.answer(messages, max_new_tokens=max_new_tokens, sampling=sampling, seed=seed)
