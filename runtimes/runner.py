"""Runs a bundle: a module is loaded when its phase comes and released after it, and every phase says what it took."""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgeglm.actions import Action, parse_action
from edgeglm.bundle import Bundle, load_bundle, verify_bundle
from edgeglm.errors import BudgetError, UnsupportedError
from edgeglm.manifest import ModuleName, Vision
from edgeglm.memory import Phase, PhaseLog, peak_rss
from edgeglm.runtimes.chat import Chat
from edgeglm.runtimes.embedding import EmbeddingRows
from edgeglm.runtimes.generate import capacity_for, generate
from edgeglm.runtimes.image import open_picture, to_patches
from edgeglm.runtimes.ort import Decoder, Encoder
from edgeglm.runtimes.positions import prompt_positions
from edgeglm.runtimes.sampling import Sampler, Sampling
from edgeglm.units import format_size


@dataclass
class Loaded:
    """When a module was loaded and unloaded, in milliseconds since the start."""

    name: str
    engine: str
    loaded: float
    unloaded: float | None = None


@dataclass(frozen=True)
class Answer:
    """What came out of a run, and what it took; times are in milliseconds, sizes in bytes."""

    text: str
    action: Action | None
    prompt_tokens: int
    generated_tokens: int
    time_to_first_token_ms: float
    decode_tokens_per_second: float
    peak_rss_bytes: int
    state_bytes: int
    phases: list[Phase]
    modules: list[Loaded]


@dataclass
class _Clock:
    start: float = field(default_factory=time.perf_counter)

    def ms(self) -> float:
        return (time.perf_counter() - self.start) * 1e3


class Runner:
    """A bundle that is ready to answer.

    Args:
        folder: The bundle.
        threads: Of the engine; all cores if None.

    Raises:
        UsageError, DamagedFileError, UnsupportedError: The folder is no bundle that can be run here.
    """

    def __init__(self, folder: Path, threads: int | None = None) -> None:
        self.clock, self.log = _Clock(), PhaseLog()
        self.threads = threads or len(os.sched_getaffinity(0))
        self.modules: list[Loaded] = []
        with self.log.phase("start"):
            self.bundle: Bundle = load_bundle(folder)
            verify_bundle(self.bundle)
            self.model = self.bundle.manifest.model
            self.chat = Chat(self.bundle.folder / "tokenizer", self.model.vision)
            self.rows = EmbeddingRows(self.bundle)

    def answer(
        self,
        prompt: str,
        image: Path | None = None,
        *,
        max_new_tokens: int = 128,
        max_ram: int | None = None,
        sampling: Sampling | None = None,
        seed: int = 0,
        show: Callable[[str], object] = lambda _: None,
    ) -> Answer:
        """Answer one prompt, with one picture or none; `show` gets the text as it is generated.

        Raises:
            UsageError: The picture cannot be read.
            UnsupportedError: The model sees no pictures.
            BudgetError: The prompt and the answer do not fit the bundle's context, or the memory of `max_ram` bytes.
        """
        vision = self._vision(image)
        content: list[dict[str, object]] = [{"type": "image"}] if image else []
        messages = [{"role": "user", "content": [*content, {"type": "text", "text": prompt}]}]
        tokens = self.chat.encode(messages)
        capacity = self._capacity(len(tokens), max_new_tokens)
        self._check_memory(capacity, max_ram)
        is_image = np.array([bool(vision and image) and token == vision.image_token_id for token in tokens])  # type: ignore[union-attr]
        hidden = self.rows.gather(tokens)
        if image and vision:
            hidden[is_image] = self._features(image, vision)
        grid = (vision.grid[0] // vision.merge_size, vision.grid[1] // vision.merge_size) if vision else None
        positions = prompt_positions(is_image.tolist(), grid if self.model.rope.mrope_sections else None)
        with self.log.phase("load decoder"):
            decoder = Decoder(self._file("decoder"), self.threads, capacity)
        generation = self.bundle.manifest.generation
        sampling = sampling or Sampling(generation.temperature, generation.top_p, generation.repetition_penalty)
        try:
            return self._generate(decoder, tokens, hidden, positions, Sampler(sampling, seed), max_new_tokens, show)
        finally:
            decoder.close()
            self.modules[-1].unloaded = self.clock.ms()

    def _generate(
        self,
        decoder: Decoder,
        tokens: list[int],
        hidden: NDArray[np.float32],
        positions: NDArray[np.int64],
        sampler: Sampler,
        max_new_tokens: int,
        show: Callable[[str], object],
    ) -> Answer:
        ends, stream = set(self.bundle.manifest.generation.eos_token_ids), self.chat.stream()
        answer = generate(decoder, self.rows, tokens, hidden, positions, sampler, ends, max_new_tokens)
        with self.log.phase("prefill"):
            token = next(answer)
        first, generated = self.clock.ms(), 1
        with self.log.phase("decode"):
            if token not in ends:
                show(stream.add(token))
            for token in answer:
                generated += 1
                if token not in ends:
                    show(stream.add(token))
        seconds = (self.clock.ms() - first) / 1e3
        return Answer(
            text=stream.text,
            action=parse_action(stream.text),
            prompt_tokens=len(tokens),
            generated_tokens=generated,
            time_to_first_token_ms=first,
            decode_tokens_per_second=(generated - 1) / seconds if generated > 1 else 0.0,
            peak_rss_bytes=peak_rss(),
            state_bytes=decoder.state_bytes,
            phases=self.log.phases,
            modules=self.modules,
        )

    def _features(self, image: Path, vision: Vision) -> NDArray[np.float32]:
        patches = to_patches(open_picture(image), vision)
        with self.log.phase("load vision"):
            encoder = Encoder(self._file("vision"), self.threads)
        with self.log.phase("encode image"):
            features: NDArray[np.float32] = encoder.run({"pixel_values": patches})["features"].astype(np.float32)
        with self.log.phase("release vision"):
            encoder.close()
            self.modules[-1].unloaded = self.clock.ms()
            _trim()
        return features

    def _vision(self, image: Path | None) -> Vision | None:
        if image and self.model.vision is None:
            raise UnsupportedError(self.model.name, "sees no pictures", "leave the picture out")
        return self.model.vision

    def _capacity(self, prompt: int, max_new_tokens: int) -> int:
        longest, needed = self.model.max_positions, prompt + max_new_tokens
        if needed > longest:
            why = f"{prompt} tokens of prompt and {max_new_tokens} of answer are more than the {longest} of this bundle"
            remedy = f"ask for at most {longest - prompt}" if prompt < longest else "shorten the prompt"
            raise BudgetError("context", why, remedy)
        return capacity_for(needed, longest)

    def _check_memory(self, capacity: int, max_ram: int | None) -> None:
        """Compare what the bundle predicts for the next longer context with the budget."""
        predicted = self.bundle.manifest.predicted.device_peak_rss_bytes
        needed = next(
            (predicted[context] for context in sorted(predicted) if context >= capacity), max(predicted.values())
        )
        if max_ram is not None and needed > max_ram:
            fitting = [context for context, size in predicted.items() if size <= max_ram]
            remedy = f"up to {max(fitting)} tokens fit" if fitting else f"give at least {format_size(needed)}"
            why = f"{format_size(max_ram)} is too little for {capacity} tokens, which take {format_size(needed)}"
            raise BudgetError("--max-ram", why, remedy)

    def _file(self, name: ModuleName) -> Path:
        module = self.bundle.module(name)
        assert module is not None
        self.modules.append(Loaded(name, "ort", self.clock.ms()))
        return self.bundle.path(module.file)


def _trim() -> None:
    """Let the C library give freed memory back to the system, where it can."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)
