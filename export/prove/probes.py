"""The prompts that modules are proven on, which begin as real ones do: the first tokens are what overflows fp16.

A model that ships with samples is proven on those. Any other gets a conversation in its chat form, with a picture of
noise where it sees one, and only a checkpoint without a tokenizer gets random tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgeglm.errors import EdgeglmError
from edgeglm.export.graph.position_embedding import position_embedding
from edgeglm.export.prepare.module import POSITION
from edgeglm.export.prepare.release import released
from edgeglm.export.prepare.types import Prepared
from edgeglm.export.prove.values import Values, decoder_inputs
from edgeglm.export.samples.screenshots import Sample, read_samples
from edgeglm.export.write.describe import describe_vision
from edgeglm.roles import Kind
from edgeglm.runtimes.core.assembly import assemble
from edgeglm.runtimes.inputs.image import to_patches
from edgeglm.runtimes.text.chat import Chat
from edgeglm.runtimes.text.messages import Message, message
from edgeglm.runtimes.text.sidecars import Sidecars

# Of the samples that ship with a model, so many are probes.
PROBES = 4
RANDOM_TOKENS = 16
# Special tokens that are looked at; vocabularies may hold hundreds that were never trained.
SPECIAL_TOKENS = 64
SYSTEM = "You are an agent that operates a phone. Answer with one action."
QUESTION = "What is 12 + 30? Open the settings, please."
ANSWER = "It is 42."


@dataclass
class Prompt:
    """Tokens, which of them stand for the picture, its patches, and its features once they are known.

    The last `answer` of the tokens are the right answer, where it is given.
    """

    tokens: list[int]
    is_image: NDArray[np.bool_]
    grid: tuple[int, int] | None = None
    patches: NDArray[np.float32] | None = None
    features: NDArray[np.float32] | None = None
    answer: int = 0


@dataclass(frozen=True)
class Passage:
    """A window of text; the last `answer` of its tokens are what a model is compared on."""

    tokens: tuple[int, ...]
    answer: int


Example = Sample | Passage


def shipped_prompts(prepared: Prepared) -> list[Prompt]:
    """Return the first calibration screens that ship with the model, with their instructions."""
    shipped = prepared.request.shipped
    return sample_prompts(prepared, read_samples(shipped.calibration, PROBES), answered=False) if shipped else []


def example_prompts(prepared: Prepared, examples: Iterable[Example]) -> list[Prompt]:
    """Return what is calibrated with: windows of text, or screens with the right answers."""
    samples: list[Sample] = []
    prompts: list[Prompt] = []
    for example in examples:
        if isinstance(example, Passage):
            prompts.append(Prompt(list(example.tokens), np.zeros(len(example.tokens), bool), answer=example.answer))
        else:
            samples.append(example)
    return prompts or sample_prompts(prepared, samples, answered=True)


@released
def sample_prompts(prepared: Prepared, samples: Iterable[Sample], *, answered: bool) -> list[Prompt]:
    """Return screens with their instructions, in the checkpoint's chat form, and behind them the right answers."""
    checkpoint, vision = prepared.checkpoint, prepared.probe.model.vision
    assert vision is not None
    assert prepared.opened.processor is not None
    described = describe_vision(vision, prepared.opened.processor)
    grid = (vision.grid[0] // vision.merge, vision.grid[1] // vision.merge)
    chat = Chat(Sidecars(checkpoint.folder), described)
    prompts = []
    for sample in samples:
        tokens = chat.encode(sample.messages)
        right = chat.tokenizer.encode(sample.expected.response, add_special_tokens=False).ids if answered else []
        is_image = np.array(tokens + right) == described.image_token_id
        patches = to_patches(sample.image, described)
        prompts.append(Prompt(tokens + right, is_image, grid, patches, answer=len(right)))
    return prompts


@released
def chat_prompts(prepared: Prepared) -> list[Prompt]:
    """Return a conversation with the beginning of its answer; random tokens if the checkpoint has no template."""
    vision = prepared.probe.model.vision
    chat = _chat(prepared)
    tokens = _conversation(chat) if chat else []
    if chat is None or not _fits(prepared, tokens):
        return random_prompts(prepared)
    if vision is None or chat.vision is None:
        return [Prompt(tokens, np.zeros(len(tokens), bool))]
    rows, columns = vision.grid[0] // vision.merge, vision.grid[1] // vision.merge
    is_image = np.array(tokens) == chat.vision.image_token_id
    if is_image.sum() != rows * columns:
        return random_prompts(prepared)
    return [Prompt(tokens, is_image, (rows, columns), _noise(prepared))]


@released
def special_prompts(prepared: Prepared) -> list[Prompt]:
    """Return one prompt of the tokenizer's special tokens, which have the largest values of all; none without any."""
    chat = _chat(prepared)
    if chat is None:
        return []
    added = sorted(chat.tokenizer.get_added_tokens_decoder())
    tokens = [token for token in added if chat.vision is None or token != chat.vision.image_token_id]
    tokens = tokens[:SPECIAL_TOKENS]
    is_image = np.zeros(len(tokens), bool)
    return [Prompt(tokens, is_image, (1, 1) if chat.vision else None)] if _fits(prepared, tokens) else []


def _chat(prepared: Prepared) -> Chat | None:
    """Return the renderer of conversations, with pictures of the probe's size; None if its files are missing."""
    checkpoint, vision, processor = prepared.checkpoint, prepared.probe.model.vision, prepared.opened.processor
    described = describe_vision(vision, processor) if vision and processor else None
    try:
        return Chat(Sidecars(checkpoint.folder), described)
    except EdgeglmError:
        return None


def _conversation(chat: Chat) -> list[int]:
    """Return a turn of each, as far as the template takes them, and the beginning of an answer."""
    picture = [{"type": "image", "image": Path("screen.png")}, {"type": "text", "text": QUESTION}]
    user: Message = {"role": "user", "content": picture if chat.vision else QUESTION}
    for messages in ([message("system", SYSTEM), user], [user]):
        try:
            tokens = chat.encode(messages)
        except EdgeglmError:
            continue
        return [*tokens, *chat.bounded.encode(ANSWER)]
    return []


def _fits(prepared: Prepared, tokens: list[int]) -> bool:
    decoder = prepared.model.decoder
    return 0 < len(tokens) <= prepared.opened.context and max(tokens) < decoder.vocabulary


def random_prompts(prepared: Prepared) -> list[Prompt]:
    """Return one prompt of random tokens; pictures are noise, and are not part of it."""
    random = np.random.default_rng(0)
    length = min(RANDOM_TOKENS, prepared.opened.context)
    tokens = random.integers(0, prepared.model.decoder.vocabulary, length).tolist()
    vision = prepared.probe.model.vision
    patches = _noise(prepared) if vision else None
    return [Prompt(tokens, np.zeros(len(tokens), bool), (1, 1) if vision else None, patches)]


def _noise(prepared: Prepared) -> NDArray[np.float32]:
    """Return a picture's patches."""
    vision = prepared.probe.model.vision
    assert vision is not None
    size = vision.channels * vision.temporal_patch * vision.patch**2
    return np.random.default_rng(0).standard_normal((vision.grid[0] * vision.grid[1], size), np.float32)


def vision_inputs(prepared: Prepared, prompt: Prompt) -> Values:
    """Return patches and position embedding of the probe's grid."""
    vision = prepared.probe.model.vision
    assert vision is not None
    assert prompt.patches is not None
    table = prepared.checkpoint.rows(vision.position)
    return {"pixel_values": prompt.patches, POSITION: position_embedding(table, vision.grid, vision.merge)}


def audio_inputs(prepared: Prepared, prompt: Prompt) -> Values:
    """Return a window of log-mel frames, which are noise and no part of the prompt."""
    audio = prepared.probe.model.audio
    assert audio is not None
    random = np.random.default_rng(len(prompt.tokens))
    return {"input_features": random.standard_normal((1, audio.mel_bins, audio.frames), np.float32)}


# What an encoder of each kind is proven on.
ENCODER_INPUTS: dict[Kind, Callable[[Prepared, Prompt], Values]] = {"image": vision_inputs, "audio": audio_inputs}


def embed(prepared: Prepared, prompt: Prompt) -> NDArray[np.float32]:
    """Return the rows of the table for a prompt's tokens: (tokens, hidden)."""
    table = prepared.probe.model.decoder.embedding
    return np.concatenate([prepared.checkpoint.rows(table, token, token + 1) for token in prompt.tokens])


def prompt_inputs(prepared: Prepared, prompt: Prompt, rows: NDArray[np.float32]) -> Values:
    """Return what a decoder takes: embedded tokens with the picture's features in their place, and positions."""
    hidden, mrope = rows.copy(), bool(prepared.probe.model.decoder.mrope_section)
    grids = [prompt.grid] if prompt.grid and prompt.is_image.any() else []
    assembly = assemble(prompt.tokens, prompt.is_image.tolist(), grids, mrope=mrope)
    if prompt.features is not None and assembly.spans:
        assembly.place(hidden, [prompt.features])
    return decoder_inputs(hidden[None], assembly.positions)
