"""The models and the episodes of ``benchmarks/episode.py``, each made when it is not there yet."""

from __future__ import annotations

import base64
import io
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.episode_parts import ablation, options, parts
from benchmarks.episode_text import EPISODES, answer, messages
from benchmarks.speed import genai, llama_cpp, run
from benchmarks.worker_process import Contender
from edgeglm.export.checkpoint.locate import DEMO
from edgeglm.export.samples.screenshots import read_samples
from edgeglm.export.samples.shipped import DATA
from edgeglm.runtimes.core.prompt import Prompt
from edgeglm.runtimes.core.runner import Runner

HERE = Path(__file__).parent
SHAPE = "glm4v-300m"
SCREEN = (504, 1008)  # 648 merged patches of 28 pixels
SIDECARS = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json",
            "preprocessor_config.json")  # fmt: skip
PRECISIONS = ("int8", "int4", "int4-128")
EARLIER = PRECISIONS[:2]
LONGEST = 10
WORDS, VOCABULARY = 4096, 32000  # of the tokenizer and of the shape
DEMO_STEPS = 30


def scripted(work: Path, rivals: str, before: str | None, *, ablate: bool) -> dict[str, Contender]:
    """Return the contenders whose answers are given, by their names; edgeglm also without parts of it to `ablate`."""
    work.mkdir(parents=True, exist_ok=True)
    checkpoint = work / SHAPE
    if not checkpoint.exists():
        run(sys.executable, HERE / "random_checkpoint.py", SHAPE, checkpoint)
        for name in SIDECARS:
            shutil.copy(DEMO / name, checkpoint)
    for precision in PRECISIONS:
        export(sys.executable, work / precision, checkpoint, precision)
    file = work / "episodes.json"
    write(file, scripted_episodes(work / PRECISIONS[0]))
    contenders = {
        f"edgeglm {precision}": Contender(sys.executable, "edgeglm", work / precision, file, options(parts()))
        for precision in PRECISIONS
    }
    if ablate:
        for name, chosen in ablation():
            contenders[f"edgeglm int8: {name}"] = Contender(sys.executable, "edgeglm", work / "int8", file, chosen)
    if before:
        for precision in EARLIER:
            export(before, work / f"before-{precision}", checkpoint, precision)
            contenders[f"earlier {precision}"] = Contender(before, "edgeglm", work / f"before-{precision}", file)
    if before and ablate:
        graph = work / "before-int8"
        contenders["edgeglm int8: earlier graph"] = Contender(sys.executable, "edgeglm", graph, file, options(parts()))
    others = llama_cpp(work, checkpoint, rivals) | genai(work, checkpoint)
    others["transformers fp32"] = (sys.executable, "transformers", checkpoint)
    contenders |= {name: Contender(*row, file) for name, row in others.items()}
    if row := others.get("llama.cpp Q4_0"):
        contenders["llama.cpp Q4_0, file"] = Contender(*row, file, '{"restore": true}')
    return contenders


def demo(work: Path, before: str | None, *, ablate: bool) -> dict[str, Contender]:
    """Return the contenders whose answers are the demo's own; edgeglm also without its parts, to `ablate` with each."""
    work.mkdir(parents=True, exist_ok=True)
    file = work / "demo.json"
    write(file, demo_episodes())
    export(sys.executable, work / "demo")
    contenders = {"edgeglm demo": Contender(sys.executable, "edgeglm", work / "demo", file, options(parts()))}
    for name, chosen in [*ablation()][: None if ablate else 1]:
        contenders[f"edgeglm demo: {name}"] = Contender(sys.executable, "edgeglm", work / "demo", file, chosen)
    if before:
        export(before, work / "before-demo")
        contenders["earlier demo"] = Contender(before, "edgeglm", work / "before-demo", file)
    return contenders | {"transformers demo": Contender(sys.executable, "transformers demo", DEMO, file)}


def export(python: str, folder: Path, checkpoint: Path | None = None, precision: str = "auto") -> None:
    """Export a checkpoint, or the demo, by the edgeglm of an interpreter."""
    if folder.exists():
        return
    size = ("--image-size", "x".join(map(str, SCREEN))) if checkpoint else ()
    # -P: the edgeglm that is installed there, not the one in this folder.
    command = (python, "-P", "-m", "edgeglm", "export", *([checkpoint] if checkpoint else []))
    run(*command, "--target", "cpu", "--precision", precision, *size, "-o", folder)


def scripted_episodes(bundle: Path) -> list[list[dict[str, Any]]]:
    """Return the steps of each episode, with tokens for those that take tokens."""
    screens = sorted((DATA / "evaluation").glob("*.webp"))
    with Runner(bundle) as runner:
        encode = runner.chat.bounded.encode
        episodes = []
        for number, (task, steps) in enumerate(EPISODES):
            urls = [screen_url(screen) for screen in screens[number * LONGEST :][: len(steps)]]
            asked = [messages(task, steps, at, url) for at, url in enumerate(urls)]
            answers = [encode(answer(*step[1:])) for step in steps]  # its last tag ends it
            prompts = [pictured(runner.prompt(turns), number * LONGEST + at) for at, turns in enumerate(asked)]
            rows = zip(asked, prompts, answers, strict=True)
            episodes.append([{"messages": turns, "prompt": tokens, "answer": given} for turns, tokens, given in rows])
    return episodes


def pictured(prompt: Prompt, number: int) -> list[int]:
    """Return a prompt's tokens with others for the picture of a number, which no other picture has."""
    tokens, random = [*prompt.tokens], np.random.default_rng(number)
    for start, stop in prompt.spans:
        tokens[start:stop] = random.integers(WORDS, VOCABULARY, stop - start).tolist()
    return tokens


def demo_episodes() -> list[list[dict[str, Any]]]:
    """Return two episodes of held-out screens; each is a conversation of its own, as the demo has learnt it."""
    samples = [*read_samples(DATA / "evaluation.jsonl", 2 * DEMO_STEPS)]
    steps = [{"messages": [question(sample.prompt, str(sample.screen))]} for sample in samples]
    return [steps[:DEMO_STEPS], steps[DEMO_STEPS:]]


def question(text: str, screen: str) -> dict[str, Any]:
    """Return the user's message about a screenshot."""
    parts = [{"type": "image_url", "image_url": {"url": screen}}, {"type": "text", "text": text}]
    return {"role": "user", "content": parts}


def screen_url(file: Path) -> str:
    """Return a screenshot as clients send it: a PNG in a data URL."""
    data = io.BytesIO()
    with Image.open(file) as image:
        image.convert("RGB").resize(SCREEN).save(data, "PNG")
    return f"data:image/png;base64,{base64.b64encode(data.getvalue()).decode()}"


def write(file: Path, episodes: list[list[dict[str, Any]]]) -> None:
    """Write episodes as the workers read them."""
    file.write_text(json.dumps(episodes))
