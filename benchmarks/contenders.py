"""One engine on one model in a process of its own, measured: ``python benchmarks/contenders.py NAME MODEL THREADS``.

``benchmarks/speed.py`` runs these side by side. Each prints one JSON object: seconds until the model is loaded and
until the first token, tokens a second of prefill (256 tokens) and decode (64 tokens behind them), the share of a decode
step outside the engine, seconds of an agent step (3,000 tokens of prompt, 80 of answer), and resident memory in bytes,
in all and anonymous.
"""

from __future__ import annotations

import ctypes
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

PROMPT, ANSWER = 256, 64
STEP_PROMPT, STEP_ANSWER = 3000, 80
CONTEXT = 4096
Feed = Callable[[Sequence[int], int], object]  # computes tokens behind so many others


class Engine(NamedTuple):
    """A loaded model.

    `seconds` are those that its steps spent in the engine alone, where that can be told. `restore` gives it the state
    behind some tokens from a file, which it writes where it is not there yet.
    """

    feed: Feed
    vocabulary: int
    seconds: Sequence[float] = ()
    restore: Callable[[Sequence[int]], object] | None = None


Load = Callable[[int, int], Engine]  # with so many threads, and room for so many tokens


def measure(load: Load, threads: int) -> dict[str, float]:
    """Load a model with so many threads, and time it."""
    start = time.perf_counter()
    engine = load(threads, CONTEXT)
    feed = engine.feed
    loaded = time.perf_counter() - start
    idle = memory()
    tokens = np.random.default_rng(0).integers(0, engine.vocabulary - 1, STEP_PROMPT + STEP_ANSWER).tolist()
    feed(tokens[:PROMPT], 0)
    first = time.perf_counter() - start
    prefill = min(timed(feed, tokens[:PROMPT], 0) for _ in range(3))
    steps = [timed(feed, [tokens[at]], at) for at in range(PROMPT, PROMPT + ANSWER)]
    used, in_engine = memory(), sum(engine.seconds[-ANSWER:])
    step_prefill = timed(feed, tokens[:STEP_PROMPT], 0)
    step_decode = sum(timed(feed, [tokens[at]], at) for at in range(STEP_PROMPT, len(tokens)))
    return {
        "load_s": loaded,
        "first_token_s": first,
        "prefill": PROMPT / prefill,
        "decode": 1 / float(np.median(steps)),
        "agent_step_s": step_prefill + step_decode,
        "step_prefill_s": step_prefill,
        "step_token_s": step_decode / STEP_ANSWER,
        "python_share": 1 - in_engine / sum(steps) if in_engine else 0.0,
        "idle_anonymous": idle["RssAnon"],
        "anonymous": used["RssAnon"],
        "peak": used["VmHWM"],
    }


def timed(feed: Feed, tokens: Sequence[int], at: int) -> float:
    """Seconds of one step."""
    start = time.perf_counter()
    feed(tokens, at)
    return time.perf_counter() - start


def memory() -> dict[str, int]:
    """This process's memory in bytes, by the kernel's names."""
    lines = Path("/proc/self/status").read_text().splitlines()
    pairs = (line.split(":") for line in lines if line.startswith(("VmHWM", "RssAnon")))
    return {name: int(value.split()[0]) << 10 for name, value in pairs}


def edgeglm(folder: str, *, low_rss: bool = False) -> Load:
    """A bundle on ONNX Runtime, by the runner's own parts."""

    def load(threads: int, context: int) -> Engine:
        from edgeglm.bundle import load_bundle
        from edgeglm.runtimes.core.embedding import EmbeddingRows
        from edgeglm.runtimes.core.generate import PREFILL_CHUNK
        from edgeglm.runtimes.core.window import capacity_for
        from edgeglm.runtimes.engines.ort.engine import Decoder
        from edgeglm.runtimes.engines.ort.weights import prepacked

        bundle = load_bundle(Path(folder))
        axes = 3 if bundle.manifest.model.rope.mrope_sections else 1
        rows, path = EmbeddingRows(bundle), bundle.folder / "decoder" / "model.onnx"
        if low_rss:
            files = {name: file for name, file in bundle.manifest.files.items() if name.startswith("decoder/")}
            path = prepacked(path, files, threads)
        decoder = Decoder(path, threads, PROMPT + ANSWER)

        spent: list[float] = []
        compute = decoder.session.run_with_iobinding

        def timed_compute(*arguments: object) -> None:
            start = time.perf_counter()
            compute(*arguments)
            spent.append(time.perf_counter() - start)

        decoder.session.run_with_iobinding = timed_compute

        def feed(tokens: Sequence[int], at: int) -> object:
            decoder.reserve(capacity_for(at + len(tokens), bundle.manifest.model.max_positions))
            decoder.truncate(at)
            positions = np.broadcast_to(np.arange(at, at + len(tokens)), (axes, 1, len(tokens)))
            hidden = rows.gather(tokens)[None]
            for begin in range(0, len(tokens), PREFILL_CHUNK):
                end = begin + PREFILL_CHUNK
                logits = decoder.step(hidden[:, begin:end], positions[:, :, begin:end])
            return int(logits.argmax())

        return Engine(feed, bundle.manifest.model.vocabulary, spent)

    return load


def transformers(folder: str) -> Load:
    """The checkpoint in transformers, eager, in fp32."""

    def load(threads: int, context: int) -> Engine:
        import torch
        import transformers

        torch.set_num_threads(threads)
        transformers.utils.logging.disable_progress_bar()
        kind = getattr(transformers, json.loads((Path(folder) / "config.json").read_text())["architectures"][0])
        model = kind.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
        cache = transformers.DynamicCache()

        @torch.inference_mode()
        def feed(tokens: Sequence[int], at: int) -> object:
            if surplus := cache.get_seq_length() - at:
                cache.crop(-surplus)
            logits = model(torch.tensor([list(tokens)]), past_key_values=cache, logits_to_keep=1).logits
            return int(logits.argmax())

        return Engine(feed, model.get_output_embeddings().out_features)

    return load


def llama_cpp(file: str) -> Load:
    """A GGUF file in llama.cpp, through llama-cpp-python's own bindings."""

    def load(threads: int, context: int) -> Engine:
        import llama_cpp

        model = llama_cpp.Llama(
            file,
            n_ctx=context,
            n_batch=PROMPT,
            n_threads=threads,
            n_threads_batch=threads,
            verbose=False,
            logits_all=False,
        )

        def feed(tokens: Sequence[int], at: int) -> object:
            model.n_tokens = at
            model.eval(tokens)  # forgets what is behind n_tokens, works in batches of n_batch, keeps the last logits
            return None

        def restore(tokens: Sequence[int]) -> object:
            state, array = f"{file}.state".encode(), (llama_cpp.llama_token * len(tokens))(*tokens)
            if Path(state.decode()).exists():
                count = ctypes.c_size_t()
                return llama_cpp.llama_state_seq_load_file(model.ctx, state, 0, array, len(tokens), ctypes.byref(count))
            feed(tokens, 0)
            return llama_cpp.llama_state_seq_save_file(model.ctx, state, 0, array, len(tokens))

        return Engine(feed, model.n_vocab(), restore=restore)

    return load


def genai(folder: str) -> Load:
    """A model that onnxruntime-genai's builder made."""

    def load(threads: int, context: int) -> Engine:
        import onnxruntime_genai

        config = onnxruntime_genai.Config(folder)
        config.overlay(json.dumps({"model": {"decoder": {"session_options": {"intra_op_num_threads": threads}}}}))
        model = onnxruntime_genai.Model(config)
        parameters = onnxruntime_genai.GeneratorParams(model)
        parameters.set_search_options(max_length=context, chunk_size=PROMPT)
        generator = onnxruntime_genai.Generator(model, parameters)

        def feed(tokens: Sequence[int], at: int) -> object:
            generator.rewind_to(at)
            generator.append_tokens(tokens)
            return None

        return Engine(feed, json.loads((Path(folder) / "genai_config.json").read_text())["model"]["vocab_size"])

    return load


CONTENDERS: dict[str, Callable[[str], Load]] = {
    "edgeglm": edgeglm,
    "edgeglm-low-rss": lambda folder: edgeglm(folder, low_rss=True),
    "transformers": transformers,
    "llama.cpp": llama_cpp,
    "onnxruntime-genai": genai,
}

if __name__ == "__main__":
    name, model, threads = sys.argv[1:]
    print(json.dumps(measure(CONTENDERS[name](model), int(threads))))
