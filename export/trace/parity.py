"""Prove a trace: it computes what transformers' own unhooked modules compute from the same random weights and inputs.

What must be computed comes from `unhooked`, in the tracing process, and shares no hook, no rotary function and no mask
with the trace. The traced graphs run here, in ONNX Runtime, after that process has ended.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeglm.export.model import Decoder, Encoder, Model
from edgeglm.export.trace.execute import Executable, refusal
from edgeglm.export.trace.trace_request import ANSWERS
from edgeglm.roles import ModuleName

Array = NDArray[Any]
Answers = Mapping[str, Array]
# The part of a module, what its trace gives, and what transformers gives.
Pairs = Iterator[tuple[str, Array, Array]]
# Relative errors; a trace in half precision is computed in fp32, but holds constants that were rounded.
LIMIT, HALF_LIMIT = 1e-4, 2e-3
# What hides a token, as the runner has it.
HIDDEN = -1e4
# The input that says how many of the last tokens' logits are wanted, of a graph that has it.
KEEP = "logits_to_keep"


def is_finite(answers: bytes) -> bool:
    """Return whether all that transformers gives are finite numbers."""
    with np.load(io.BytesIO(answers)) as arrays:
        return all(np.isfinite(arrays[name]).all() for name in arrays)


def check(model: Model, files: Mapping[str, bytes], *, half: bool) -> None:
    """Compare the traces of a model with what transformers gives.

    Args:
        model: What the traces are of.
        files: The traces and `ANSWERS` by their names.
        half: Whether they are in half precision.

    Raises:
        UnsupportedError: A trace computes something else; the error names the part.
    """
    with np.load(io.BytesIO(files[ANSWERS])) as answers:
        limit = HALF_LIMIT if half else LIMIT
        encoders = (_encoder(name, encoder, files, answers) for name, encoder in model.encoders.items())
        for part, got, want in chain(_decoder(model.decoder, files, answers), *encoders):
            if got.shape != want.shape:
                raise refusal(part, f"gives {got.shape} where transformers gives {want.shape}")
            error = _error(got, want)
            if not error <= limit:
                raise refusal(part, f"differs from transformers by {error:{'.0%' if error >= 0.01 else '.1e'}}")


def _error(got: Array, want: Array) -> float:
    """Return the largest relative L2 error of a row; not a number where anything is none."""
    rows = np.linalg.norm(got.astype(np.float64) - want, axis=-1) / np.maximum(np.linalg.norm(want, axis=-1), 1e-30)
    return float(rows.max())


def _decoder(decoder: Decoder, files: Mapping[str, bytes], answers: Answers) -> Pairs:
    front = Executable("decoder front", files["decoder.front.onnx"], str)
    cos, sin = _rotate(front, answers["decoder.positions"])
    got = _angles(np.repeat(cos, 2, -1), np.repeat(sin, 2, -1))
    yield "decoder front", got, _angles(answers["decoder.cos"], answers["decoder.sin"])
    block = Executable("decoder block", files["decoder.block.onnx"], decoder.blocks.format(layer=0).__add__)
    yield from _conversation(decoder, front, block, answers)
    ends = {"norm": decoder.norm.removesuffix(".weight"), "head": decoder.head.removesuffix(".weight")}
    back = Executable("decoder back", files["decoder.back.onnx"], ends.__getitem__)
    want = answers["decoder.logits"]
    for last in sorted({1, want.shape[1]}) if KEEP in back.inputs else [1]:
        logits = back.run({"hidden": answers["decoder.block"], KEEP: np.array([last])})["logits"]
        if logits.shape != (1, last, decoder.vocabulary):
            raise refusal("decoder back", f"gives logits of {logits.shape} for {last} of {decoder.vocabulary} words")
        yield "decoder back", logits[..., answers["decoder.words"]], want[:, -last:]


def _conversation(decoder: Decoder, front: Executable, block: Executable, answers: Answers) -> Pairs:
    """Compare the block step by step, each with the keys and values that the one before it left."""
    hidden = {step: answers[f"{step}.hidden"] for step in _steps(answers)}
    state = (_Cache if "cache_key" in block.inputs else _Past)(block, decoder, sum(map(_count, hidden.values())))
    for step, tokens in hidden.items():
        angles = front.run({"position_ids": answers[f"{step}.positions"]})
        yield "decoder block", state.step({"hidden": tokens, **angles}, _count(tokens)), answers[f"{step}.block"]


class _Past:
    """Keys and values of a block that joins them with its own."""

    def __init__(self, block: Executable, decoder: Decoder, room: int) -> None:
        self.block, self.done = block, 0
        self.key = self.value = np.zeros((1, decoder.kv_heads, 0, decoder.head_dim), np.float32)

    def step(self, values: Mapping[str, Array], count: int) -> Array:
        """Return what comes out of the block."""
        state = {"past_key": self.key, "past_value": self.value, "mask": _mask(self.done, count)[None]}
        outputs = self.block.run({**values, **state})
        self.key, self.value, self.done = outputs["present_key"], outputs["present_value"], self.done + count
        return outputs["hidden_out"]


class _Cache:
    """Keys and values of a block that writes its own behind the others, where it reads them."""

    def __init__(self, block: Executable, decoder: Decoder, room: int) -> None:
        self.block, self.done = block, 0
        sizes = (room, decoder.kv_heads, decoder.head_dim)
        # What is not written yet must not be read.
        self.key, self.value = (np.full(sizes, np.nan, np.float32) for _ in range(2))

    def step(self, values: Mapping[str, Array], count: int) -> Array:
        """Return what comes out of the block."""
        stop = self.done + count
        state = {"cache_key": self.key[:stop], "cache_value": self.value[:stop], "mask": _mask(self.done, count)}
        new = {"new_key": self.key[self.done : stop], "new_value": self.value[self.done : stop]}
        outputs = self.block.run({**values, **state}, {name: rows.reshape(1, count, -1) for name, rows in new.items()})
        self.done = stop
        return outputs["hidden_out"]


def _encoder(name: ModuleName, encoder: Encoder, files: Mapping[str, bytes], answers: Answers) -> Pairs:
    prefix = f"{name}."
    given = {key.removeprefix(prefix): answers[key] for key in answers if key.startswith(prefix)}
    sizes = given["sizes"].tolist()
    front, block, back = (
        Executable(f"{name} {part}", files[f"{name}.{part}.onnx"], full_name, dict(fixed))
        for part, full_name, fixed in (
            ("front", encoder.prefix.__add__, sizes[:1]),
            ("block", encoder.blocks.format(layer=0).__add__, sizes[:1]),
            ("back", encoder.prefix.__add__, sizes),
        )
    )
    outputs = front.run({key.removeprefix("in."): array for key, array in given.items() if key.startswith("in.")})
    got = np.concatenate([outputs[f"{name}_cos"], outputs[f"{name}_sin"]], -1)[given["rows"]]
    yield front.part, got, np.concatenate([given["some_cos"], given["some_sin"]], -1)
    yield front.part, outputs["hidden"], given["hidden"]
    outputs = block.run({"hidden": given["hidden"], f"{name}_cos": given["cos"], f"{name}_sin": given["sin"]})
    yield block.part, outputs["hidden_out"], given["block"]
    yield back.part, back.run({"hidden": given["block"]})["features"], given["features"]


def _steps(answers: Answers) -> list[str]:
    return sorted(name.removesuffix(".hidden") for name in answers if name.startswith("step.") and ".hidden" in name)


def _rotate(front: Executable, positions: Array) -> tuple[Array, Array]:
    """Return cosines and sines (1, count, half) of positions (axes, 1, count)."""
    outputs = front.run({"position_ids": positions})
    return outputs["rotary_cos"], outputs["rotary_sin"]


def _angles(cos: Array, sin: Array) -> Array:
    """Join cosines and sines, each in order of size: families have their channels in different orders."""
    return np.concatenate([np.sort(cos, -1), np.sort(sin, -1)], -1)


def _count(tokens: Array) -> int:
    return int(tokens.shape[1])


def _mask(done: int, count: int) -> Array:
    """Return what hides later tokens from `count` of them behind `done`: (1, count, done + count)."""
    return np.triu(np.full((1, count, done + count), HIDDEN, np.float32), done + 1)
