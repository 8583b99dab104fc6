"""One contender of ``benchmarks/episode.py`` in a process of its own, which does what its input says.

``python benchmarks/episode_worker.py NAME MODEL THREADS EPISODES [OPTIONS]``, where EPISODES is a file that
`episode.py` wrote, and OPTIONS are those of edgeglm's runner in JSON. A request and its reply are a line of JSON each:
``["step", EPISODE, STEP]``, ``["decode", BEHIND, COUNT]`` or ``["peak"]``.

edgeglm runs its own loop. The others get tokens, and keep what a prompt shares with the one before, as their prompt
caches do.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

# Behind what is installed, which may be an earlier edgeglm.
sys.path.append(str(Path(__file__).parents[1]))

from benchmarks.contenders import CONTENDERS, Engine, memory, timed

Figures = dict[str, float]
Step = Mapping[str, Any]  # messages, the tokens of the prompt, and those of the answer unless it is the model's own
CONTEXT = 6144  # room for each episode


class Agent(Protocol):
    """What answers the steps of an episode."""

    def step(self, step: Step) -> Figures:
        """Answer a prompt: seconds in all and to the first token, tokens, and the passes that chose tokens."""


class Fed:
    """An engine that is fed an answer token by token, one pass each; the state behind a prefix is restored."""

    def __init__(self, engine: Engine, prefix: Sequence[int] = ()) -> None:
        self.engine, self.known = engine, [*prefix]
        if prefix:
            assert engine.restore
            engine.restore(prefix)

    def step(self, step: Step) -> Figures:
        """Prefill what the prompt does not share with the step before, then feed the answer."""
        prompt, answer = step["prompt"], step["answer"]
        shared = shared_length(self.known, prompt)
        first = timed(self.engine.feed, prompt[shared:], shared)
        rest = sum(timed(self.engine.feed, [token], at) for at, token in enumerate(answer[:-1], len(prompt)))
        self.known = [*prompt, *answer[:-1]]
        return {
            "seconds": first + rest,
            "first": first,
            "tokens": len(answer),
            "passes": len(answer),
            "prefilled": len(prompt) - shared,
        }


def shared_length(known: Sequence[int], wanted: Sequence[int]) -> int:
    """Return how many tokens both begin with; one of those wanted is always left."""
    most = min(len(known), len(wanted) - 1)
    return next((at for at in range(most) if known[at] != wanted[at]), most)


class InTransformers:
    """The demo in transformers, whose answers are its own."""

    def __init__(self) -> None:
        from edgeglm.export.checkpoint.locate import DEMO
        from edgeglm.export.evaluate.original.whole import WholeOriginal

        self.original = WholeOriginal.load(DEMO)

    def step(self, step: Step) -> Figures:
        """Answer a prompt by transformers' own greedy search."""
        from edgeglm.runtimes.inputs.image import open_picture, to_rgb
        from edgeglm.runtimes.text.messages import normalize, pictures

        start = time.perf_counter()
        asked = normalize(step["messages"])
        images = [to_rgb(open_picture(source)) for source in pictures(asked)]
        (answer,) = self.original.answer(images, [asked])
        tokens = len(self.original.tokenizer.encode(answer)) + 1  # with the one that ends it
        seconds = time.perf_counter() - start
        return {"seconds": seconds, "first": seconds, "tokens": tokens, "passes": tokens, "prefilled": 0}


class Decoding:
    """Single tokens behind a prompt of random ones."""

    def __init__(self, engine: Engine) -> None:
        self.engine, self.length = engine, 0
        self.tokens = np.random.default_rng(0).integers(0, engine.vocabulary - 1, CONTEXT).tolist()

    def decode(self, behind: int, count: int) -> Figures:
        """Return the median of so many tokens, in seconds."""
        if self.length != behind:
            self.engine.feed(self.tokens[:behind], 0)
            self.length = behind
        return {
            "token": float(np.median([timed(self.engine.feed, [self.tokens[behind]], behind) for _ in range(count)]))
        }


def open_agent(
    name: str, model: str, threads: int, episodes: Sequence[Sequence[Step]], options: Mapping[str, Any]
) -> Agent:
    """Load a contender."""
    if name == "transformers demo":
        return InTransformers()
    if name != "edgeglm":
        prompts = [episode[0]["prompt"] for episode in episodes]
        prefix = prompts[0][: shared_length(*prompts)] if options.get("restore") else ()
        return Fed(CONTENDERS[name](model)(threads, CONTEXT), prefix)
    from benchmarks.episode_runner import Answering

    return Answering(Path(model), threads, options, "answer" in episodes[0][0])


def replies(name: str, model: str, threads: int, file: str, options: str = "{}") -> Iterator[Figures]:
    """Yield a reply when the contender is loaded, and one to each request."""
    episodes = json.loads(Path(file).read_text())
    agent = open_agent(name, model, threads, episodes, json.loads(options))
    yield {}
    decoding: Decoding | None = None
    for line in sys.stdin:
        match json.loads(line):
            case ["step", episode, step]:
                begun = time.process_time()
                figures = agent.step(episodes[episode][step])
                yield figures | {"cpu": time.process_time() - begun}
            case ["decode", behind, count]:
                decoding = decoding or Decoding(
                    agent.engine if isinstance(agent, Fed) else CONTENDERS[name](model)(threads, CONTEXT)
                )
                yield decoding.decode(behind, count)
            case ["peak"]:
                children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss << 10
                yield {"peak": memory()["VmHWM"] + children}


if __name__ == "__main__":
    name, model, threads, *rest = sys.argv[1:]
    replying = sys.stdout
    sys.stdout = sys.stderr  # what a library prints is no reply
    for reply in replies(name, model, int(threads), *rest):
        print(json.dumps(reply), file=replying, flush=True)
