"""The self-test of the demo's bundles: held-out screens with the answers that transformers generates.

``python -m edgeglm.export.demo.self_test`` writes ``data/self-test.json``, which ships with the package.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click
import torch

from edgeglm.actions import parse_action
from edgeglm.export.checkpoint.locate import DEMO
from edgeglm.export.demo.samples import DATA
from edgeglm.export.evaluate.original.drafter import MAX_NEW_TOKENS
from edgeglm.export.evaluate.original.whole import WholeOriginal
from edgeglm.export.evaluate.tasks.success import succeeds
from edgeglm.export.samples.screenshots import Sample, read_samples
from edgeglm.runtimes.core.self_test import Probe, SelfTest

FILE = DATA / "self-test.json"
SCREENS = 24
# Of each type of action the screens whose least sure token is the surest.
OF_A_TYPE = {"Tap": 3}
# Ahead of the next token by so many nats, the likeliest one is sure: the demo in INT4 keeps it.
LEAD = 2.0


@torch.inference_mode()
def answer_screens(samples: Sequence[Sample]) -> Iterator[tuple[float, str, Probe]]:
    """Yield the original's greedy answer to each screen that it gets right.

    Before it stand by how many nats the least sure token was ahead, and the type of the action.
    """
    original = WholeOriginal.load(DEMO)
    for sample in samples:
        assert isinstance(sample.screen, Path)
        inputs = original.encode([sample.image], [sample.messages])
        found: Any = original.model.generate(
            **inputs, max_new_tokens=MAX_NEW_TOKENS, do_sample=False, repetition_penalty=1.0, output_logits=True,
            return_dict_in_generate=True,
        )  # fmt: skip
        tokens = tuple(found.sequences[0, inputs["input_ids"].shape[1] :].tolist())
        (text,) = original.texts([tokens], original.ends)
        action = parse_action(text)
        if action and succeeds(sample.expected, text):
            best = torch.stack(found.logits)[:, 0].topk(2).values
            leads = (best[:, 0] - best[:, 1]).tolist()
            sure = tuple(lead >= LEAD for lead in leads)
            yield (
                min(leads),
                action.type,
                Probe(sample.prompt, tokens, tokens, sure, f"evaluation/{sample.screen.name}"),
            )


def make_self_test() -> SelfTest:
    """Choose the probes."""
    chosen: dict[str, list[Probe]] = {}
    found = answer_screens(list(read_samples(DATA / "evaluation.jsonl", SCREENS)))
    for _, kind, probe in sorted(found, key=lambda candidate: -candidate[0]):
        if len(chosen.setdefault(kind, [])) < OF_A_TYPE.get(kind, 1):
            chosen[kind].append(probe)
    return SelfTest(tuple(probe for probes in chosen.values() for probe in probes))


@click.command()
def main() -> None:
    """Write the self-test."""
    test = make_self_test()
    FILE.write_bytes(test.to_bytes())
    click.echo(f"{FILE}: {len(test.probes)} probes")


if __name__ == "__main__":
    main()
