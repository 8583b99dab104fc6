"""Answers of both models to the same samples: same prompts and pictures, greedy, same end tokens, same length limit."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from edgeglm.bundle import Bundle
from edgeglm.errors import UnsupportedError
from edgeglm.export.demo.agent import MAX_NEW_TOKENS, Agent
from edgeglm.export.demo.samples import Sample
from edgeglm.export.validation.cache import cached, checkpoint_key
from edgeglm.runtimes.chat import Chat
from edgeglm.runtimes.embedding import EmbeddingRows
from edgeglm.runtimes.generate import capacity_for, generate
from edgeglm.runtimes.image import to_patches
from edgeglm.runtimes.ort import Decoder, Encoder
from edgeglm.runtimes.positions import prompt_positions
from edgeglm.runtimes.sampling import Sampler, Sampling


def artifact_answers(bundle: Bundle, samples: Sequence[Sample]) -> list[str]:
    """What the bundle answers: first all pictures, then, with the vision module gone, all prompts."""
    vision, model, threads = bundle.manifest.model.vision, bundle.manifest.model, len(os.sched_getaffinity(0))
    if vision is None:
        raise UnsupportedError(model.name, "sees no pictures", "validate a phone agent")
    chat, rows = Chat(bundle.folder / "tokenizer", vision), EmbeddingRows(bundle)
    encoder = Encoder(_file(bundle, "vision"), threads)
    pictures = [encoder.run({"pixel_values": to_patches(each.image, vision)})["features"] for each in samples]
    encoder.close()
    prompts = [chat.encode(_messages(sample)) for sample in samples]
    capacity = capacity_for(max(map(len, prompts)) + MAX_NEW_TOKENS, model.max_positions)
    decoder = Decoder(_file(bundle, "decoder"), threads, capacity)
    grid = (vision.grid[0] // vision.merge_size, vision.grid[1] // vision.merge_size)
    ends = set(bundle.manifest.generation.eos_token_ids)
    answers = []
    for tokens, features in zip(prompts, pictures, strict=True):
        is_image = np.array(tokens) == vision.image_token_id
        hidden = rows.gather(tokens)
        hidden[is_image] = features
        positions = prompt_positions(is_image.tolist(), grid if model.rope.mrope_sections else None)
        stream = chat.stream()
        decoder.reset()
        for token in generate(decoder, rows, tokens, hidden, positions, Sampler(Sampling()), ends, MAX_NEW_TOKENS):
            if token not in ends:
                stream.add(token)
        answers.append(stream.text)
    decoder.close()
    return answers


def reference_answers(checkpoint: Path, samples: Sequence[Sample]) -> list[str]:
    """What the original answers in transformers, in fp32; kept in the cache by checkpoint and samples."""

    def compute() -> list[str]:
        agent = Agent.load(checkpoint)
        return list(agent.answer([sample.image for sample in samples], [sample.prompt for sample in samples]))

    pieces = [piece for sample in samples for piece in (sample.prompt.encode(), sample.image.tobytes())]
    return cached([f"{MAX_NEW_TOKENS}".encode(), checkpoint_key(checkpoint), *pieces], list[str], compute)


def _messages(sample: Sample) -> list[dict[str, object]]:
    return [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": sample.prompt}]}]


def _file(bundle: Bundle, name: str) -> Path:
    module = next(each for each in bundle.manifest.modules if each.name == name)
    return bundle.path(module.file)
