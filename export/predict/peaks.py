"""Predict the memory of an export and of its bundle, before either begins.

The constants were fitted to what `benchmarks/export_memory.py` measures; it prints prediction and measurement side by
side.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from edgeglm.engines import ACCELERATOR_BYTES, ENGINES
from edgeglm.errors import BudgetError
from edgeglm.export.model import Choice, Decoder, Stored
from edgeglm.roles import DECODER, ModuleName
from edgeglm.runtimes.core.generate import PREFILL_CHUNK
from edgeglm.runtimes.core.prefixes import TOKENS
from edgeglm.runtimes.core.session import MAX_LAST
from edgeglm.runtimes.core.window import LEAST_PIECE, SCORES_BYTES
from edgeglm.units import format_size

MIB = 1 << 20
# The tracing child with torch and transformers, which imports scipy where an extra has brought it, and its parent.
TRACE_BYTES = 690 * MIB
# The exporter's own code, ONNX Runtime and a stamped graph of some dozen layers.
EXPORT_BYTES = 197 * MIB
# Example inputs of a vision tower, of which the child's figure has room for so many.
EXAMPLE_BYTES = 48 * MIB
CHUNK_BYTES = 16 * MIB
# Encoding threads of the prediction that a bundle keeps, whichever machine made it.
USUAL_WORKERS = 2
JOINED_BYTES = 64 * MIB
# Python, numpy, Pillow, tokenizers and ONNX Runtime, and a tokenizer of few words.
RUNNER_BYTES, FEW_WORDS = 76 * MIB, 1024
# Pillow's decoders, and what stays of a picture and of the module that has encoded it.
PICTURE_BYTES = 8 * MIB
# Starlette, uvicorn and the metrics, where sequences are served side by side.
SERVER_BYTES = 16 * MIB
# What a word of a tokenizer takes with its merges: 170 MiB for GLM-4's 151,329. Loading it takes a third more.
WORD_BYTES, LOADING = 1200, 1.3
# The process that renders prompts with transformers, without torch, and its parent: both load the tokenizer.
CHAT_BYTES = 300 * MIB
# The NPU's compiler and simulator in their process, and what they take for a byte of the module's weights.
COMPILER_BYTES, COMPILER_FACTOR = 340 * MIB, 8
# What it makes of a module, which lies in the bundle beside it, for a byte of its weights: 1.23 of the demo's.
COMPILED_FACTOR = 1.25
# What decoding, resizing and cutting a picture takes for a pixel of the bundle's grid, measured on screens of up to
# twice its size.
PIXEL_BYTES = 64
# The scores of a pass and their softmax, and half of both that the engine's arena keeps of earlier, shorter passes.
SCORES = 3
# The mask of a pass: as it is made, and as the engine is given it.
MASKS = 2
# The keys or values of a layer in fp32, where they are stored in fp16, and the arena's smaller ones of earlier passes.
WIDENED = 2
CONTEXTS = (1024, 4096, 8192)
# The head of a block of keys and values, which names a bundle's files and the block's tokens.
HEAD_BYTES = 4 << 10


@dataclass(frozen=True)
class ModuleSize:
    """The sizes of a module that predictions need: its stored weights, and the width of its activations.

    ``factor`` is what a session keeps for a byte of them. ``wide`` is the most elements that one token has in a layer
    at a time, ``tokens`` how many are computed at once. ``state`` is what keys and values, and attention over
    them, take whatever the context, if so. ``pixels`` are those of the picture, ``inputs`` the bytes of its patches.
    """

    choice: Choice
    weights: Sequence[Stored]
    nbytes: int
    factor: float
    tokens: int
    wide: int
    state: int | None = None
    pixels: int = 0
    inputs: int = 0

    @property
    def largest(self) -> int:
        """Bytes of the largest part, which is in memory twice while it is loaded."""
        return max(part.nbytes for stored in self.weights for part in stored.parts)

    @property
    def loaded(self) -> int:
        """Bytes of the weights in a session."""
        own = ENGINES[self.choice.engine].loaded if self.choice.engine else None
        return int(self.nbytes * (own or self.factor))

    @property
    def activations(self) -> int:
        """Bytes, of which an allocator keeps what several operators in a row took."""
        return 10 * 4 * self.tokens * self.wide


def check_peak(peak: int, budget: int, purpose: str, remedy: str = "") -> None:
    """Raise BudgetError, which names the smallest budget that would do, if a peak is above the budget.

    Args:
        peak: In bytes.
        budget: Bytes, of ``--max-ram``.
        purpose: What the budget is too little for.
        remedy: What else can be done.
    """
    if peak > budget:
        least = f"it takes at least {-(-peak // MIB)}MiB{remedy}"
        raise BudgetError("--max-ram", f"{format_size(budget)} is too little {purpose}", least)


def export_peak(
    modules: Sequence[ModuleSize],
    workers: int,
    engine_bytes: int,
    *,
    torch: int | None,
    examples: int = 0,
    decoding: int = 0,
    words: int = 0,
) -> int:
    """Return the peak resident memory of an export's process tree.

    Args:
        modules: All of them.
        workers: Encoding threads.
        engine_bytes: Up to which size of its weights a module is run as a whole.
        torch: Bytes that the tracing child takes beyond torch's CPU build; None if its result is found in the cache.
        examples: Bytes of a vision tower's inputs, which the child is given as examples.
        decoding: Bytes that it takes to compute rows from what they are stored as.
        words: Of the tokenizer.
    """
    streamed = max(_streaming(module, workers) for module in modules)
    run = max((int(2.5 * module.nbytes) for module in modules if module.nbytes <= engine_bytes), default=0)
    compiled = max((_compiling(module) for module in modules), default=0)
    child = 0 if torch is None else TRACE_BYTES + torch + max(0, examples - EXAMPLE_BYTES)
    loading = int(WORD_BYTES * LOADING * words)
    chat = CHAT_BYTES + WORD_BYTES * words + loading if words and child else 0
    return max(EXPORT_BYTES + max(streamed + decoding, run, compiled, loading), child, chat)


def _compiling(module: ModuleSize) -> int:
    return COMPILER_BYTES + COMPILER_FACTOR * module.nbytes if module.choice.kind.integers else 0


def _streaming(module: ModuleSize, workers: int) -> int:
    """Return the chunks that are read and encoded, those that wait to be written, and strips that are joined."""
    largest = max(module.weights, key=lambda stored: stored.rows * stored.columns)
    elements = min(CHUNK_BYTES // 4, largest.rows * largest.columns)
    encoded = int(elements * sum(part.nbytes for part in largest.parts) / (largest.rows * largest.columns))
    strips = [part.nbytes for stored in module.weights for part in stored.parts[:1] if part.row_axis == 1]
    joined = 2 * min(max(strips, default=0), JOINED_BYTES)
    return workers * 10 * elements + (workers + 2) * (2 * elements + encoded) + joined


def device_peak(modules: Sequence[ModuleSize], decoder: Decoder, context: int) -> int:
    """Return the peak memory of running a bundle with `context` tokens; modules are in memory one after the other."""
    peaks = [
        _device_peak(module, _context_bytes(module.choice, decoder, context) if module.choice.is_decoder else 0)
        for module in modules
    ]
    seen = PICTURE_BYTES if any(module.choice.is_image for module in modules) else 0
    return _runner_bytes(decoder) + seen + max(*peaks, int((LOADING - 1) * _words_bytes(decoder)))


def _context_bytes(choice: Choice, decoder: Decoder, context: int) -> int:
    """Return what grows with the context: keys and values, scores and mask, and the prompt's embeddings."""
    beside = attention_bytes(choice, decoder, context) + 4 * decoder.hidden * context
    return state_bytes(choice, decoder, context) + beside


def slots_peak(modules: Sequence[ModuleSize], decoder: Decoder, slots: int) -> tuple[int, int]:
    """Return the peak of sequences side by side that have no token yet, and what each token of any of them adds.

    The decoder is in memory while an image is encoded, with what its arena keeps of a piece of a prompt and of steps of
    all others.

    Args:
        modules: All of them.
        decoder: Its sizes.
        slots: The number of sequences.
    """
    (module,) = (module for module in modules if module.choice.is_decoder)
    encoders = [module for module in modules if not module.choice.is_decoder]
    rows = 1 + (slots - 1) * MAX_LAST / PREFILL_CHUNK
    kept = int(module.activations * rows) + SCORES * SCORES_BYTES + MASKS * SCORES_BYTES // decoder.heads
    least = SCORES * 4 * decoder.heads * LEAST_PIECE + MASKS * 4 * LEAST_PIECE
    encoding = max((_device_peak(encoder, 0) for encoder in encoders), default=0)
    loading = int((LOADING - 1) * _words_bytes(decoder))
    process = _runner_bytes(decoder) + SERVER_BYTES + PICTURE_BYTES + module.loaded
    token = state_bytes(module.choice, decoder, 1) + 4 * decoder.hidden + least
    return process + max(module.largest, kept + max(encoding, loading)), token


def prefix_bytes(choice: Choice, decoder: Decoder, tokens: int) -> int:
    """Return what the state behind a prefix of so many tokens takes in a bundle."""
    return kv_bytes(choice, decoder, tokens) + -(-tokens // TOKENS) * HEAD_BYTES


def prefix_peak(modules: Sequence[ModuleSize], decoder: Decoder, lengths: Sequence[int]) -> int:
    """Return the peak of an export while a worker computes prefixes of so many tokens; 0 where there are none."""
    return EXPORT_BYTES + device_peak(modules, decoder, max(lengths)) if lengths else 0


def decoder_width(decoder: Decoder) -> int:
    """Return a tenth of the elements of a token that an arena keeps: ten copies of the queries, four of all else."""
    return decoder.heads * decoder.head_dim + 2 * (decoder.hidden + decoder.intermediate) // 5


def kv_bytes(choice: Choice, decoder: Decoder, context: int) -> int:
    """Return the bytes of the keys and values of so many tokens."""
    size = 2 if choice.half or choice.kv == "fp16" else 4
    return 2 * size * decoder.layers * decoder.kv_heads * decoder.head_dim * context


def state_bytes(choice: Choice, decoder: Decoder, context: int) -> int:
    """Return the bytes of a session's buffers of keys and values for so many tokens."""
    # Plain operators join them with the new ones in each step, into another buffer.
    stored = (2 if choice.kind.is_plain else 1) * kv_bytes(choice, decoder, context)
    widened = 4 * decoder.kv_heads * decoder.head_dim * context if choice.kv == "fp16" else 0
    return stored + WIDENED * widened


def attention_bytes(choice: Choice, decoder: Decoder, context: int) -> int:
    """Return the bytes of scores and mask of the largest pass: on ONNX Runtime `piece_for` has bounded its tokens."""
    tokens = min(PREFILL_CHUNK, context)
    row = (2 if choice.half else 4) * decoder.heads * context
    scores = row * tokens
    if choice.kind.contrib:
        scores = min(scores, max(row * LEAST_PIECE, SCORES_BYTES))
    return SCORES * scores + MASKS * scores // decoder.heads


def _runner_bytes(decoder: Decoder) -> int:
    return RUNNER_BYTES + _words_bytes(decoder)


def _words_bytes(decoder: Decoder) -> int:
    return WORD_BYTES * max(0, decoder.vocabulary - FEW_WORDS)


def _device_peak(module: ModuleSize, state: int) -> int:
    if module.choice.engine is None:  # rows of a memory map
        return 0
    state = state if module.state is None else module.state
    accelerator = ACCELERATOR_BYTES[module.choice.placement]
    run = accelerator + module.loaded + module.inputs + max(module.largest, state + module.activations)
    return max(run, PIXEL_BYTES * module.pixels)


def contexts(longest: int) -> list[int]:
    """Return the lengths that a plan speaks of: 1k, 4k, 8k and the longest."""
    return sorted({min(length, longest) for length in (*CONTEXTS, longest)})


def by_context(modules: Sequence[ModuleSize], decoder: Decoder, longest: int) -> dict[int, int]:
    """Return `device_peak` for each of `contexts`."""
    return {context: device_peak(modules, decoder, context) for context in contexts(longest)}


def largest_decoder(usable: int, modules: Mapping[ModuleName, ModuleSize], decoder: Decoder, context: int) -> int:
    """Estimate how many parameters a decoder like this one may have to fit into `usable` bytes."""
    module = modules[DECODER]
    parameters = sum(stored.rows * stored.columns for stored in module.weights)
    runner = _runner_bytes(decoder)
    needed = device_peak([module], decoder, context) - runner
    return int(parameters * max(0, usable - runner) / needed)
