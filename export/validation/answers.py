"""Answers of both models to the same samples: same prompts and pictures, greedy, same end tokens, same length limit."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeglm.bundle import Bundle
from edgeglm.errors import BudgetError
from edgeglm.export.demo.agent import MAX_NEW_TOKENS, Agent
from edgeglm.export.demo.samples import Sample
from edgeglm.export.validation.cache import cached, checkpoint_key
from edgeglm.machine import read_machine
from edgeglm.manifest import Module, Vision
from edgeglm.runtimes import litert, ort
from edgeglm.runtimes.chat import Chat
from edgeglm.runtimes.embedding import EmbeddingRows
from edgeglm.runtimes.generate import generate
from edgeglm.runtimes.image import to_patches
from edgeglm.runtimes.positions import prompt_positions
from edgeglm.runtimes.qnn import npu_for
from edgeglm.runtimes.sampling import Sampler, Sampling
from edgeglm.runtimes.session import EncoderSession
from edgeglm.runtimes.sessions import engine_of, open_decoder, open_encoder
from edgeglm.runtimes.window import capacity_for
from edgeglm.units import format_size

# Features of the pictures that wait for the decoder; then the vision module is loaded again.
FEATURE_BYTES = 256 << 20
# At most so many go through the NPU's simulator, which takes seconds for the demo's picture.
SIMULATED_SCREENS = 64
ENGINES = {"ort": "ONNX Runtime on the CPU", "litert": "LiteRT on the CPU", "tensorrt": "TensorRT on the GPU"}
Show = Callable[[float], object]  # told which share is done
# Screens that the original answers together, and the parameters beyond which they are fewer: with a large model their
# activations count, and together they are hardly faster.
BATCH, PARAMETERS = 32, 8_000_000


def artifact_answers(bundle: Bundle, samples: Sequence[Sample], show: Show = lambda _: None) -> list[str]:
    """What the bundle answers: as on a device, the decoder comes when the vision module is gone.

    Raises:
        BudgetError: A prompt with its answer is longer than the bundle's context.
    """
    vision, model = bundle.manifest.model.vision, bundle.manifest.model
    assert vision is not None
    picture = 4 * model.hidden_size * vision.grid[0] * vision.grid[1] // vision.merge_size**2
    group = max(1, FEATURE_BYTES // picture)
    answers: list[str] = []
    for start in range(0, len(samples), group):
        some = samples[start : start + group]
        for answer in _decode(bundle, vision, some, _features(bundle, vision, some, len(samples))):
            answers.append(answer)
            show(len(answers) / len(samples))
    return answers


def where_run(bundle: Bundle, samples: int) -> dict[str, str]:
    """What runs each module in `artifact_answers` to so many samples, in words."""
    found: dict[str, str] = {
        module.name: ENGINES.get(engine_of(module), ENGINES["ort"])
        for module in bundle.manifest.modules
        if module.engine
    }
    vision = _module(bundle, "vision")
    if vision.engine == "litert" and vision.compiled:
        return found | {"vision": f"{ENGINES['litert']}: {litert.NO_DISPATCH}"}
    if vision.engine != "qnn":
        return found
    npu, why = npu_for(vision)
    if npu and samples <= SIMULATED_SCREENS:
        return found | {"vision": npu.name}
    if npu:
        why = f"the simulator would take too long for {samples} screens, and takes {SIMULATED_SCREENS}"
    return found | {"vision": f"ONNX Runtime on the CPU, from the quantized ONNX: {why}"}


def _encoder(bundle: Bundle, samples: int) -> EncoderSession:
    """The vision module's session: the NPU's simulator for few samples, else ONNX Runtime."""
    module = _module(bundle, "vision")
    if module.engine == "qnn" and samples > SIMULATED_SCREENS:
        return ort.Encoder(bundle.path(module.file), _threads())
    return open_encoder(bundle, module, _threads())


def _features(bundle: Bundle, vision: Vision, samples: Sequence[Sample], total: int) -> list[NDArray[Any]]:
    encoder = _encoder(bundle, total)
    features = [encoder.run({"pixel_values": to_patches(each.image, vision)})["features"] for each in samples]
    encoder.close()
    return features


def _decode(
    bundle: Bundle, vision: Vision, samples: Sequence[Sample], pictures: Sequence[NDArray[Any]]
) -> Iterator[str]:
    model, rows, chat = bundle.manifest.model, EmbeddingRows(bundle), Chat(bundle.folder / "tokenizer", vision)
    prompts = [chat.encode(sample.messages) for sample in samples]
    longest = max(map(len, prompts)) + MAX_NEW_TOKENS
    if longest > model.max_positions:
        why = f"a prompt and its answer take {longest} tokens, and it has room for {model.max_positions}"
        raise BudgetError(bundle.folder, why, f"export it with --context {longest}")
    capacity = capacity_for(longest, model.max_positions)
    decoder = open_decoder(bundle, _module(bundle, "decoder"), _threads(), capacity)
    grid = (vision.grid[0] // vision.merge_size, vision.grid[1] // vision.merge_size)
    ends = set(bundle.manifest.generation.eos_token_ids)
    for tokens, features in zip(prompts, pictures, strict=True):
        is_image = np.array(tokens) == vision.image_token_id
        hidden = rows.gather(tokens)
        hidden[is_image] = features
        positions = prompt_positions(is_image.tolist(), grid if model.rope.mrope_sections else None)
        stream = chat.stream()
        decoder.truncate(0)
        for token in generate(decoder, rows, tokens, hidden, positions, Sampler(Sampling()), ends, MAX_NEW_TOKENS):
            if token not in ends:
                stream.add(token)
        yield stream.text
    decoder.close()


def reference_answers(
    checkpoint: Path, parameters: int, samples: Sequence[Sample], show: Show = lambda _: None
) -> list[str]:
    """What the original answers in transformers, in fp32; kept in the cache by checkpoint and samples.

    Raises:
        BudgetError: So many parameters are more than the memory that is available.
    """

    def compute() -> list[str]:
        needed, available = 4 * parameters, read_machine().memory_available_bytes
        if needed > available:
            sizes = f"{format_size(needed)}, and {format_size(available)} are available"
            remedy = "take a machine with more memory, or validate on a text, for which it is streamed: --data FILE.txt"
            raise BudgetError(checkpoint, f"its answers take it whole in fp32, {sizes}", remedy)
        agent, answers = Agent.load(checkpoint), list[str]()
        for some in _batches(samples, max(1, BATCH * PARAMETERS // max(parameters, PARAMETERS))):
            answers += _answer(agent, some)
            show(len(answers) / len(samples))
        return answers

    return cached(_key(checkpoint, samples), list[str], compute)


def _answer(agent: Agent, samples: Sequence[Sample]) -> Iterator[str]:
    return agent.answer([sample.image for sample in samples], [sample.messages for sample in samples], BATCH)


def _batches(samples: Sequence[Sample], size: int) -> Iterator[list[Sample]]:
    rest = iter(samples)
    while some := list(islice(rest, size)):
        yield some


def _key(checkpoint: Path, samples: Sequence[Sample]) -> Iterator[bytes]:
    yield f"screens {MAX_NEW_TOKENS}".encode()
    yield checkpoint_key(checkpoint)
    for sample in samples:
        yield repr(sample.messages).encode()
        yield sample.image.tobytes()


def _module(bundle: Bundle, name: str) -> Module:
    return next(each for each in bundle.manifest.modules if each.name == name)


def _threads() -> int:
    return len(os.sched_getaffinity(0))
