"""The self-test that a bundle carries: of the demo its held-out screens, of any other model samples or two sentences.

The original is asked in one pass, segment by segment, what it finds the likeliest before every token of the answers.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from edgeglm.export.calibrate.walk import Walk
from edgeglm.export.checkpoint.sidecars import open_chat
from edgeglm.export.prepare.release import released
from edgeglm.export.prepare.types import Prepared
from edgeglm.export.prove.probes import Example, Passage, Prompt, sample_prompts
from edgeglm.export.prove.reference import OriginalWeights
from edgeglm.export.samples.screenshots import Sample
from edgeglm.runtimes.core.self_test import FILE, MAX_TEXT, MAX_TOKENS, Probe, SelfTest
from edgeglm.runtimes.inputs.image import open_picture
from edgeglm.runtimes.text.chat import Chat
from edgeglm.runtimes.text.messages import message, normalize

SENTENCES = ("The quick brown fox jumps over the lazy dog.", "敏捷的棕色狐狸跳过了那只懒狗。")
ASK = "Repeat: {}"
MOST_TOKENS = 16
# Of all pictures together, and the qualities of WebP that are tried for that.
PICTURES_BYTES, QUALITIES = 190_000, (80, 60, 40, 20)
# The original is sure of a token that is so many times ahead of the next one as the recorded errors change a logit.
# They count as LEAST at least, for what differs from one processor to the other.
ERRORS, LEAST = 4.0, 0.01
UNSURE = "no self-test: of what it would answer, the original is surer of no token than the errors are large"


@dataclass(frozen=True)
class _Question:
    """A sequence for the original to judge, and the probe that it becomes."""

    prompt: Prompt
    text: str
    before: tuple[tuple[str, str], ...] = ()
    picture: bytes | None = None


def own_assets(prepared: Prepared, error: float, held_out: Sequence[Example] = ()) -> dict[str, bytes]:
    """Ask the original; return the files of its self-test, or none where it is sure of no token.

    The probes are the held-out samples. Where there are none, or the original is sure of nothing in them, they are the
    sentences, as far as there is a tokenizer and room for them.

    Args:
        prepared: The export of any model.
        error: What the modules' recorded relative errors are together.
        held_out: Samples that calibration did not use, where there are enough.
    """
    for questions in (_samples(prepared, held_out), _sentences(prepared)):
        probes = list(_judged(prepared, questions, error))
        if any(any(probe.sure) for probe in probes):
            pictures = {
                _picture(index): question.picture for index, question in enumerate(questions) if question.picture
            }
            return {FILE: SelfTest(tuple(probes)).to_bytes(), **pictures}
    return {}


def _samples(prepared: Prepared, held_out: Sequence[Example]) -> list[_Question]:
    screens = [example for example in held_out if isinstance(example, Sample)]
    passages = [example for example in held_out if isinstance(example, Passage)]
    return _screens(prepared, screens) if screens else _passages(prepared, passages)


def _screens(prepared: Prepared, samples: Sequence[Sample]) -> list[_Question]:
    """Take screens as the vision module sees them; none where the original is computed for another size."""
    vision, probe, processor = prepared.model.vision, prepared.probe.model.vision, prepared.opened.processor
    if not (vision and probe and processor) or vision.grid != probe.grid or prepared.opened.shapes:
        return []
    size = (vision.grid[1] * vision.patch, vision.grid[0] * vision.patch)
    questions = []
    for sample in samples:
        picture = sample.image.resize(size, Image.Resampling(processor.resample))
        if data := _webp(picture, PICTURES_BYTES // len(samples)):
            seen = replace(sample, screen=open_picture(data))
            (prompt,) = sample_prompts(prepared, [seen], answered=True)
            ends = prepared.opened.generation.eos_token_ids
            questions.append(_Question(_without_end(prompt, ends), sample.prompt, sample.before, data))
    return [question for question in questions if _fits(prepared, question)]


def _without_end(prompt: Prompt, ends: Sequence[int]) -> Prompt:
    """Return a prompt whose answer stops before the token that ends it, where its text has that token."""
    if prompt.answer < 2 or prompt.tokens[-1] not in ends:
        return prompt
    return replace(prompt, tokens=prompt.tokens[:-1], is_image=prompt.is_image[:-1], answer=prompt.answer - 1)


def _webp(picture: Image.Image, most: int) -> bytes | None:
    """Return a picture's file in the best quality that takes at most so many bytes, if any does."""
    for quality in QUALITIES:
        file = io.BytesIO()
        picture.save(file, "WEBP", quality=quality, method=6)
        if file.tell() <= most:
            return file.getvalue()
    return None


@released
def _passages(prepared: Prepared, passages: Sequence[Passage]) -> list[_Question]:
    """Take the beginning of each as the prompt, and its end as the answer."""
    chat = open_chat(prepared.checkpoint)
    if chat is None:
        return []
    prefix = len(chat.tokenizer.encode("").ids)  # which stands before every text, so before the prompt too
    cut = ((passage.tokens[prefix : -passage.answer], passage.tokens[-passage.answer :]) for passage in passages)
    return _texts(prepared, chat, [(chat.tokenizer.decode(list(begin)), list(end)) for begin, end in cut])


@released
def _sentences(prepared: Prepared) -> list[_Question]:
    chat = open_chat(prepared.checkpoint)
    if chat is None:
        return []
    encoded = ((sentence, chat.tokenizer.encode(sentence, add_special_tokens=False).ids) for sentence in SENTENCES)
    return _texts(prepared, chat, [(ASK.format(sentence), tokens[:MOST_TOKENS]) for sentence, tokens in encoded])


def _texts(prepared: Prepared, chat: Chat, pairs: Sequence[tuple[str, list[int]]]) -> list[_Question]:
    """Return texts with the tokens of their answers, in the checkpoint's chat form."""
    questions = []
    for text, answer in pairs:
        tokens = [*chat.encode(normalize([message("user", text)])), *answer]
        questions.append(_Question(Prompt(tokens, np.zeros(len(tokens), bool), answer=len(answer)), text))
    return [question for question in questions if _fits(prepared, question)]


def _fits(prepared: Prepared, question: _Question) -> bool:
    """Return whether the device takes it, and may answer freely at twice the length."""
    count, tokens = question.prompt.answer, question.prompt.tokens
    answer, ends = tokens[len(tokens) - count :], prepared.opened.generation.eos_token_ids
    short = 0 < count <= MAX_TOKENS and max(map(len, (question.text, *sum(question.before, ())))) <= MAX_TEXT
    return short and len(tokens) + count <= prepared.opened.context and not any(token in ends for token in answer)


def _judged(prepared: Prepared, questions: Sequence[_Question], error: float) -> Iterator[Probe]:
    """Yield the probes, of which the original is asked in one pass, segment by segment."""
    if not questions:
        return
    walk = Walk(prepared, [question.prompt for question in questions], OriginalWeights(prepared.checkpoint), {})
    with np.errstate(all="ignore"):  # the proof has said what is not finite
        found = [logits[:, 0] for _, logits in walk.logits()]
    for index, (question, logits) in enumerate(zip(questions, found, strict=True)):
        answer = tuple(question.prompt.tokens[-question.prompt.answer :])
        image = _picture(index) if question.picture else None
        yield Probe(question.text, answer, *_likeliest(logits, error), image, question.before)


def _picture(index: int) -> str:
    return f"assets/{index:04d}.webp"


def _likeliest(logits: NDArray[np.float32], error: float) -> tuple[tuple[int, ...], tuple[bool, ...]]:
    """Return the likeliest token by each row of logits, (n, vocabulary), and which of them the original is sure of."""
    second, first = np.partition(logits, -2, axis=-1)[:, -2:].T
    change = max(error, LEAST) * np.sqrt(np.mean(np.square(logits), axis=-1))
    return tuple(logits.argmax(-1).tolist()), tuple((first - second > ERRORS * change).tolist())
