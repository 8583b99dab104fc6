"""Measure the sensitivity of each part: the damage of its precision alone to the answers' distribution."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace

import msgspec
import numpy as np

from edgeglm.export.calibrate.walk import ORIGINAL, Walk
from edgeglm.export.prepare.identity import identify
from edgeglm.export.prepare.types import Prepared
from edgeglm.export.prove.probes import Prompt
from edgeglm.export.prove.reference import OriginalWeights
from edgeglm.export.prove.values import divergence
from edgeglm.store import find, keep

KIND, RESULT = "sensitivity", "result.json"


def sensitivities(prepared: Prepared, prompts: Sequence[Prompt], parts: Mapping[str, str]) -> dict[str, float]:
    """Return the damage of each part's precision alone; kept in the cache.

    Damage is the mean Kullback-Leibler divergence, in nats a token of the prompts' answers, of the distribution with
    that part alone rounded from the original's; to three digits.

    Args:
        prepared: The model.
        prompts: With their answers.
        parts: A precision by the name that ``--precision`` has for the part.
    """
    key = _key(prepared, prompts, parts)
    if known := find(KIND, key):
        with suppress(msgspec.DecodeError, KeyError):  # of another version
            return msgspec.json.decode(known[RESULT], type=dict[str, float])
    found = _measure(prepared, prompts, parts)
    keep(KIND, key, {RESULT: msgspec.json.encode(found)})
    return found


def _measure(prepared: Prepared, prompts: Sequence[Prompt], parts: Mapping[str, str]) -> dict[str, float]:
    original = OriginalWeights(replace(prepared.checkpoint, keep_pages=True))
    damage: dict[str, list[float]] = {part: [] for part in parts}
    for branch, logits in Walk(prepared, prompts, original, parts).logits():
        if branch == ORIGINAL:
            right = logits
        else:
            damage[branch].append(divergence(right, logits))
    return {part: float(f"{np.mean(values):.3g}") for part, values in damage.items()}


def _key(prepared: Prepared, prompts: Sequence[Prompt], parts: Mapping[str, str]) -> str:
    digest = hashlib.sha256(f"{prepared.key()} {identify(prepared.checkpoint)} {sorted(parts.items())}".encode())
    for prompt in prompts:
        digest.update(repr((prompt.tokens, prompt.answer)).encode())
        digest.update(b"" if prompt.patches is None else prompt.patches.tobytes())
    return digest.hexdigest()[:32]
