"""Passes and time of an agent's answers with grammar and drafts, alone and together: ``python -m benchmarks.drafts``.

All answers are greedy and each starts from an empty state; those that differ from plain decoding are counted. The last
row drafts what is never accepted: its time beside plain decoding is what drafts cost where they are useless.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from statistics import median

from edgeglm.export.samples.screenshots import read_samples
from edgeglm.export.samples.shipped import DATA
from edgeglm.runtimes.core.answer import Answer
from edgeglm.runtimes.core.drafts import Drafts, Kind, Lookup
from edgeglm.runtimes.core.grammars import Choice
from edgeglm.runtimes.core.prompt import Prompt
from edgeglm.runtimes.core.runner import Runner
from edgeglm.runtimes.core.sampling import Sampling


class Wrong(Lookup):
    """Finds what followed, and guesses another token."""

    def find(self, stop: int) -> tuple[int, Kind] | None:
        """Return what may not come, and its kind."""
        found = super().find(stop)
        return found and (found[0] ^ 1, found[1])


class Useless(Drafts):
    """Drafts what is wrong wherever something can be looked up."""

    def begin(self, prompt: Sequence[int], limit: int) -> Lookup:
        """Begin an answer."""
        return Wrong(self.known(prompt), limit, self.chances)


def decode_ms(answers: Sequence[Answer]) -> float:
    """Return the milliseconds of prefill and decode."""
    return sum(phase.ms for answer in answers for phase in answer.phases if phase.name in ("prefill", "decode"))


def ask(runner: Runner, prompts: Sequence[Prompt], grammar: Choice, drafts: Drafts | None) -> list[Answer]:
    """Answer each prompt from an empty state."""
    runner.drafts, answers = drafts, []
    for prompt in prompts:
        runner.forget()
        answers.append(runner.answer(prompt, sampling=Sampling(), grammar=grammar))
    return answers


def main() -> None:
    """Print a row for each way to decode."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--screens", type=int, default=64)
    parser.add_argument("--skip", type=int, default=0, help="begin behind so many screens")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--rounds", type=int, default=1, help="times are medians of so many rounds, in turns")
    options = parser.parse_args()
    samples = islice(read_samples(DATA / "evaluation.jsonl", options.skip + options.screens), options.skip, None)
    ways: dict[str, tuple[Choice, type[Drafts] | None]] = {
        "plain": ("off", None),
        "grammar": ("auto", None),
        "drafts": ("off", Drafts),
        "both": ("auto", Drafts),
        "useless drafts": ("off", Useless),
    }
    found: dict[str, list[list[Answer]]] = {name: [] for name in ways}
    with Runner(options.bundle, options.threads) as runner:
        prompts = [runner.prompt(sample.asked) for sample in samples]
        runner.encode(prompts)
        for _ in range(options.rounds):
            for name, (grammar, drafts) in ways.items():
                found[name].append(ask(runner, prompts, grammar, drafts() if drafts else None))
    print("| way | tokens | passes | passes a token | ms | other answers | without action |")
    print("|---|---|---|---|---|---|---|")
    for name, rounds in found.items():
        answers = rounds[0]
        tokens, passes = (sum(getattr(a, key) for a in answers) for key in ("generated_tokens", "model_passes"))
        others = sum(a.tokens != b.tokens for a, b in zip(answers, found["plain"][0], strict=True))
        blank = sum(answer.action is None for answer in answers)
        took = median(map(decode_ms, rounds))
        print(f"| {name} | {tokens} | {passes} | {passes / tokens:.3f} | {took:.0f} | {others} | {blank} |")


if __name__ == "__main__":
    main()
