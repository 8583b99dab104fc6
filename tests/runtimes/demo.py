"""The demo's bundles, and a question to one of them."""

from __future__ import annotations

from pathlib import Path

from edgeglm.devices.loader import load_profile
from edgeglm.export.checkpoint.locate import DEMO, DEMO_NAME
from edgeglm.export.pipeline.export import export
from edgeglm.export.predict.forecast import predict
from edgeglm.export.prepare.preparation import open_export, prepare
from edgeglm.export.prepare.types import Request
from edgeglm.export.samples.shipped import DATA, DEMO_DATA
from edgeglm.runtimes.core.runner import Answer, Runner
from edgeglm.runtimes.core.sampling import Sampling
from edgeglm.runtimes.text.messages import message

SCREEN, OTHER_SCREEN = (DATA / "evaluation" / f"{index:04d}.webp" for index in (1, 2))


def demo_bundle(folder: Path, target: str, precision: str, format_: str = "onnx") -> Path:
    """Export the demo."""
    request = Request(DEMO, DEMO_NAME, load_profile(target), precision, shipped=DEMO_DATA, format=format_)
    prepared = prepare(open_export(request))
    export(prepared, folder, predict(prepared), lambda _: None)
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
