"""edgeglm as a contender of ``benchmarks/episode.py``: the runner's own loop, on answers that are given or its own."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeglm.bundle import Bundle
from edgeglm.manifest import Module
from edgeglm.memory import current_rss
from edgeglm.runtimes.core import sessions
from edgeglm.runtimes.core.prompt import Prompt
from edgeglm.runtimes.core.runner import Runner
from edgeglm.runtimes.core.sampling import Sampler, Sampling
from edgeglm.runtimes.core.session import DecoderSession, EncoderSession, Feeds


class Scripted(Sampler):
    """Chooses the tokens of a given answer, whatever the logits are."""

    def __init__(self, answer: Sequence[int], prompt: Prompt) -> None:
        super().__init__(Sampling())
        self.answer, self.begin = answer, len(prompt.tokens)

    def choose(self, logits: NDArray[np.float32], seen: Sequence[int], *guide: object) -> int:
        """Return the token that follows those `seen`, prompt and answer."""
        return self.answer[len(seen) - self.begin]


class GivenFeatures:
    """Features of pictures that are given, as the other engines get them; (tokens, hidden)."""

    def __init__(self, module: Module) -> None:
        shape = next([int(size) for size in tensor.shape] for tensor in module.outputs if tensor.name == "features")
        self.features = np.random.default_rng(0).standard_normal(shape, np.float32)

    def run(self, feeds: Feeds) -> dict[str, NDArray[Any]]:
        """Return them, for any picture."""
        return {"features": self.features}

    def close(self) -> None:
        """Do nothing."""


class GivenSessions:
    """The engines of this machine, but for the vision module, whose features are given."""

    def open_encoder(self, bundle: Bundle, module: Module, threads: int) -> EncoderSession:
        """Open what stands for the vision module."""
        return GivenFeatures(module)

    def open_decoder(
        self, bundle: Bundle, module: Module, threads: int, capacity: int, *, low_rss: bool = False
    ) -> DecoderSession:
        """Open the decoder."""
        return sessions.open_decoder(bundle, module, threads, capacity, low_rss=low_rss)


def keep(max_bytes: int) -> object:
    """Return what a runner takes to keep so much in the user's store."""
    from edgeglm.runtimes.core.prefixes import Keep  # which an earlier edgeglm does not have

    return Keep(max_bytes)


class Answering:
    """A runner that answers steps.

    Args:
        folder: The bundle.
        threads: Of the engine.
        options: Of the ``runner``, of its ``answer``, and whether it keeps an attribute of a ``session``.
        scripted: Whether answers and the features of pictures are given.
    """

    def __init__(self, folder: Path, threads: int, options: Mapping[str, Mapping[str, Any]], scripted: bool) -> None:
        wanted = dict(options.get("runner", {}))
        if scripted:
            wanted["sessions"] = GivenSessions()
        if "keep" in wanted:
            wanted["keep"] = keep(wanted["keep"])
        self.runner = Runner(folder, threads, **wanted)
        self.options = options.get("answer", {})
        for name, stays in options.get("session", {}).items():
            if not stays:
                setattr(self.runner, name, None)

    def step(self, step: Mapping[str, Any]) -> dict[str, float]:
        """Answer a step, as `benchmarks.episode_worker.Agent` says."""
        start = time.perf_counter()
        prompt, script = self.runner.prompt(step["messages"]), step.get("answer")
        sampler = Scripted(script, prompt) if script else Sampling()
        answer = self.runner.answer(prompt, sampling=sampler, **self.options)
        seconds = time.perf_counter() - start
        if script and answer.tokens != script:
            raise AssertionError(f"the answer is {answer.text!r}, and not the one that was given")
        return {
            "seconds": seconds,
            "first": answer.time_to_first_token_ms / 1e3,
            "tokens": len(answer.tokens),
            "passes": getattr(answer, "model_passes", len(answer.tokens)),
            "prefilled": answer.prefilled_tokens,
            "rss": current_rss(),
        }
