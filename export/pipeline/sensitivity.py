"""How much each part of a model matters: what its precision alone does to the answers' distribution.

The prompts pass through the original segment by segment. Behind each part that is to be rounded a branch splits off,
which has that part rounded and everything behind it original, and all branches pass through the rest together. So
memory holds one segment's weights and, a branch, one hidden state a prompt.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgeglm.export.model import Dialect
from edgeglm.export.modules import Stack, decoder_stack, segments, vision_stack
from edgeglm.export.pipeline.prepare import Prepared
from edgeglm.export.pipeline.probes import Prompt, embed, prompt_inputs, vision_inputs
from edgeglm.export.prove.reference import OriginalWeights, Segment
from edgeglm.export.prove.values import Values, divergence, feeds, passed_on
from edgeglm.export.quantize.embedding import EmbeddingScheme, encode_embedding, gather
from edgeglm.export.quantize.rounded import RoundedWeights
from edgeglm.export.quantize.schemes import Scheme, parse_scheme

ORIGINAL = ""
Branches = dict[str, list[Values]]


def sensitivities(prepared: Prepared, prompts: Sequence[Prompt], parts: Mapping[str, str]) -> dict[str, float]:
    """The damage of each of `parts`, a precision by the name that ``--precision`` has for it; kept in the cache.

    Damage is the mean Kullback-Leibler divergence, in nats a token of the prompts' answers, of the distribution with
    that part alone rounded from the original's; to three digits.
    """
    cache = _cache_folder() / f"{_key(prepared, prompts, parts)}.json"
    if cache.is_file():
        return msgspec.json.decode(cache.read_bytes(), type=dict[str, float])
    found = _measure(prepared, prompts, parts)
    cache.parent.mkdir(parents=True, exist_ok=True)
    partial = cache.with_suffix(f".{os.getpid()}")
    partial.write_bytes(msgspec.json.encode(found))
    partial.replace(cache)
    return found


def _measure(prepared: Prepared, prompts: Sequence[Prompt], parts: Mapping[str, str]) -> dict[str, float]:
    probe, dialects = prepared.probe, {module.choice.name: module.choice.dialect for module in prepared.modules}
    branches: Branches = {ORIGINAL: [{} for _ in prompts]}
    if probe.vision and probe.model.vision:
        branches = {ORIGINAL: [vision_inputs(prepared, prompt) for prompt in prompts]}
        stack = vision_stack(probe.vision, probe.model.vision)
        branches = _pass("vision", stack, branches, prepared, parts, dialects["vision"])
    branches = _embed(branches, prepared, prompts, parts)
    stack = decoder_stack(probe.decoder, probe.model.decoder)
    branches = _pass("decoder", stack, branches, prepared, parts, dialects["decoder"], prompts)
    originals = branches[ORIGINAL]
    damage = {}
    for part in parts:
        pairs = zip(originals, branches[part], strict=True)
        damage[part] = float(f"{np.mean([divergence(p['logits'], q['logits']) for p, q in pairs]):.3g}")
    return damage


def _pass(
    module: str,
    stack: Stack,
    branches: Branches,
    prepared: Prepared,
    parts: Mapping[str, str],
    dialect: Dialect,
    prompts: Sequence[Prompt] | None = None,
) -> Branches:
    """All branches through a module; `prompts` are given where it ends in logits."""
    source = replace(prepared.checkpoint, keep_pages=True)
    for name, graph in segments(stack, "portable"):
        if prompts and name == "back":
            branches = {branch: list(map(_predicting, values, prompts)) for branch, values in branches.items()}
        part, inputs = f"{module}.{name}", graph.graph.inputs

        def through(segment: Segment, values: Values) -> Values:
            return {**values, **passed_on(segment.run(feeds(inputs, values)))}  # noqa: B023

        original = Segment(graph, OriginalWeights(source))
        after = {branch: [through(original, each) for each in values] for branch, values in branches.items()}
        if part in parts:
            rounded = Segment(graph, RoundedWeights(source, parse_scheme(parts[part]), dialect))
            after[part] = [through(rounded, each) for each in branches[ORIGINAL]]
        branches = after
    return branches


def _embed(branches: Branches, prepared: Prepared, prompts: Sequence[Prompt], parts: Mapping[str, str]) -> Branches:
    """From the pictures' features to the decoder's inputs, and one more branch for a rounded table."""
    rows = [embed(prepared, prompt) for prompt in prompts]

    def inputs(values: Sequence[Values], rows: Sequence[NDArray[np.float32]]) -> list[Values]:
        features = [each.get("features") for each in values]
        together = zip(prompts, features, rows, strict=True)
        return [prompt_inputs(prepared, replace(prompt, features=seen), each) for prompt, seen, each in together]

    embedded = {branch: inputs(values, rows) for branch, values in branches.items()}
    if "embedding" in parts:
        scheme = parse_scheme(parts["embedding"])
        embedded["embedding"] = inputs(branches[ORIGINAL], [_rounded(scheme, each) for each in rows])
    return embedded


def _rounded(scheme: Scheme, rows: NDArray[np.float32]) -> NDArray[np.float32]:
    arrays = encode_embedding(_embedding(scheme), rows)
    return gather(arrays, np.arange(len(rows)))


def _embedding(scheme: Scheme) -> EmbeddingScheme:
    return scheme  # type: ignore[return-value]  # `choices` lets no other through


def _predicting(values: Values, prompt: Prompt) -> Values:
    """The hidden states that predict the answer's tokens, each as a prompt of its own: (answer, 1, hidden)."""
    hidden = values["hidden"][0]
    last = hidden[-1 - prompt.answer : -1] if prompt.answer else hidden[-1:]
    return {**values, "hidden": last[:, None]}


def _cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edgeglm" / "sensitivity"


def _key(prepared: Prepared, prompts: Sequence[Prompt], parts: Mapping[str, str]) -> str:
    digest = hashlib.sha256(f"{prepared.key()} {sorted(parts.items())}".encode())
    for prompt in prompts:
        digest.update(repr((prompt.tokens, prompt.answer)).encode())
        digest.update(b"" if prompt.patches is None else prompt.patches.tobytes())
    return digest.hexdigest()[:32]
