"""The demo's bundles, and a question to one of them."""

from __future__ import annotations

from pathlib import Path

from edgeglm.devices.loader import load_profile
from edgeglm.export.demo.samples import DATA
from edgeglm.export.locate import DEMO, DEMO_NAME
from edgeglm.export.pipeline.export import export
from edgeglm.export.pipeline.forecast import predict
from edgeglm.export.pipeline.prepare import open_export, prepare
from edgeglm.export.pipeline.prepared import Request
from edgeglm.runtimes.messages import message
from edgeglm.runtimes.runner import Answer, Runner
from edgeglm.runtimes.sampling import Sampling

SCREEN, OTHER_SCREEN = (DATA / "evaluation" / f"{index:04d}.webp" for index in (1, 2))


def demo_bundle(folder: Path, target: str, precision: str, format_: str = "onnx") -> Path:
    """Export the demo."""
    request = Request(DEMO, DEMO_NAME, load_profile(target), precision, is_demo=True, format=format_)
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
