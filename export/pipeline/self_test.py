"""The self-test that a bundle carries: of the demo its held-out screens, of any other model a sentence to repeat.

The original is asked in one pass, segment by segment, what it finds the likeliest before every token of the sentence.
"""

from __future__ import annotations

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgeglm.export.checkpoint.sidecars import open_chat
from edgeglm.export.demo.samples import DATA
from edgeglm.export.pipeline.prepared import Opened, Prepared
from edgeglm.export.pipeline.probes import Prompt
from edgeglm.export.pipeline.walk import Walk
from edgeglm.export.prove.reference import OriginalWeights
from edgeglm.runtimes.chat import Chat
from edgeglm.runtimes.messages import message, normalize
from edgeglm.runtimes.self_test import FILE, Probe, SelfTest

DEMO = DATA / "self-test.json"
# What a probe of the demo takes, prompt and answer.
DEMO_CONTEXT = 256
SENTENCES = ("The quick brown fox jumps over the lazy dog.", "敏捷的棕色狐狸跳过了那只懒狗。")
ASK = "Repeat: {}"
MOST_TOKENS = 16
# The original is sure of a token that is so many times ahead of the next one as the recorded errors change a logit.
# They count as LEAST at least, for what differs from one processor to the other.
ERRORS, LEAST = 4.0, 0.01
UNSURE = (
    "no self-test: of the sentence that it would repeat, the original is surer of no token than the errors are large"
)


def demo_assets(opened: Opened) -> dict[str, bytes]:
    """Return the files of the demo's self-test; none for another picture or a short context."""
    request = opened.request
    if not request.is_demo or request.image_sizes or opened.context < DEMO_CONTEXT:
        return {}
    test = msgspec.json.decode(DEMO.read_bytes(), type=SelfTest)
    files = {probe.image: (DATA / probe.image).read_bytes() for probe in test.probes if probe.image}
    probes = [msgspec.structs.replace(probe, image=probe.image and _asset(probe.image)) for probe in test.probes]
    return {FILE: SelfTest(tuple(probes)).to_bytes(), **{_asset(name): data for name, data in files.items()}}


def _asset(image: str) -> str:
    return f"assets/{image.rpartition('/')[2]}"


def sentence_test(prepared: Prepared, error: float) -> SelfTest | None:
    """Ask the original for the sentences; None where it is sure of no token, or there is no room or tokenizer for one.

    Args:
        prepared: The export of any model.
        error: What the modules' recorded relative errors are together.
    """
    chat = open_chat(prepared.checkpoint)
    asked = [pair for sentence in SENTENCES if chat and (pair := _prompt(prepared, chat, sentence))]
    prompts = [prompt for _, prompt in asked]
    walk = Walk(prepared, prompts, OriginalWeights(prepared.checkpoint), {}) if prompts else None
    with np.errstate(all="ignore"):  # the proof has said what is not finite
        found = [logits[:, 0] for _, logits in walk.logits()] if walk else []
    probes = [
        Probe(text, tuple(prompt.tokens[-prompt.answer :]), *_likeliest(logits, error))
        for (text, prompt), logits in zip(asked, found, strict=True)
    ]
    return SelfTest(tuple(probes)) if any(any(probe.sure) for probe in probes) else None


def _prompt(prepared: Prepared, chat: Chat, sentence: str) -> tuple[str, Prompt] | None:
    text = ASK.format(sentence)
    tokens = chat.encode(normalize([message("user", text)]))
    answer = chat.tokenizer.encode(sentence, add_special_tokens=False).ids[:MOST_TOKENS]
    ends = prepared.opened.generation.eos_token_ids
    fits = len(tokens) + 2 * len(answer) <= prepared.opened.context
    if not answer or not fits or any(token in ends for token in answer):
        return None
    everything = [*tokens, *answer]
    return text, Prompt(everything, np.zeros(len(everything), bool), answer=len(answer))


def _likeliest(logits: NDArray[np.float32], error: float) -> tuple[tuple[int, ...], tuple[bool, ...]]:
    """Return the likeliest token by each row of logits, (n, vocabulary), and which of them the original is sure of."""
    second, first = np.partition(logits, -2, axis=-1)[:, -2:].T
    change = max(error, LEAST) * np.sqrt(np.mean(np.square(logits), axis=-1))
    return tuple(logits.argmax(-1).tolist()), tuple((first - second > ERRORS * change).tolist())
