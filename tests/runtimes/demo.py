"""The demo's bundles, and a question to one of them."""

from __future__ import annotations

import fcntl
import os
import shutil
from pathlib import Path

from edgeglm.devices.loader import load_profile
from edgeglm.export.checkpoint.locate import DEMO, DEMO_NAME
from edgeglm.export.pipeline.export import export
from edgeglm.export.predict.forecast import predict
from edgeglm.export.prepare.preparation import open_export, prepare
from edgeglm.export.prepare.types import Request
from edgeglm.export.samples.shipped import DATA, DEMO_DATA
from edgeglm.runtimes.core.answer import Answer
from edgeglm.runtimes.core.runner import Runner
from edgeglm.runtimes.core.sampling import Sampling
from edgeglm.runtimes.text.messages import message

SCREEN, OTHER_SCREEN = (DATA / "evaluation" / f"{index:04d}.webp" for index in (1, 2))


def demo_bundle(folder: Path, target: str, precision: str, format_: str = "onnx") -> Path:
    """Copy the demo's bundle, which is exported once for all processes of a run of the suite."""
    kept = Path(os.environ["EDGEGLM_TEST_BUNDLES"], f"{target} {precision} {format_}")
    with open(f"{kept}.lock", "wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not kept.exists():
            _export(kept, target, precision, format_)
    shutil.copytree(kept, folder)
    return folder


def _export(folder: Path, target: str, precision: str, format_: str) -> None:
    request = Request(DEMO, DEMO_NAME, load_profile(target), precision, shipped=DEMO_DATA, format=format_)
    prepared = prepare(open_export(request))
    export(prepared, folder, predict(prepared), lambda _: None)


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
