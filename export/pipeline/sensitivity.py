"""How much each part of a model matters: what its precision alone does to the answers' distribution."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np

from edgeglm.export.pipeline.prepared import Prepared
from edgeglm.export.pipeline.probes import Prompt
from edgeglm.export.pipeline.walk import ORIGINAL, Walk
from edgeglm.export.pipeline.weights import identify
from edgeglm.export.prove.reference import OriginalWeights
from edgeglm.export.prove.values import divergence


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
    original = OriginalWeights(replace(prepared.checkpoint, keep_pages=True))
    damage: dict[str, list[float]] = {part: [] for part in parts}
    for branch, logits in Walk(prepared, prompts, original, parts).logits():
        if branch == ORIGINAL:
            right = logits
        else:
            damage[branch].append(divergence(right, logits))
    return {part: float(f"{np.mean(found):.3g}") for part, found in damage.items()}


def _cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edgeglm" / "sensitivity"


def _key(prepared: Prepared, prompts: Sequence[Prompt], parts: Mapping[str, str]) -> str:
    digest = hashlib.sha256(f"{prepared.key()} {identify(prepared.checkpoint)} {sorted(parts.items())}".encode())
    for prompt in prompts:
        digest.update(repr((prompt.tokens, prompt.answer)).encode())
        digest.update(b"" if prompt.patches is None else prompt.patches.tobytes())
    return digest.hexdigest()[:32]
