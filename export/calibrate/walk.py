"""Prompts through the original model, segment by segment, with branches in which one part alone is rounded.

Behind each part that is to be rounded a branch splits off, which has that part rounded and everything behind it
original, and all branches pass through the rest together. So memory holds one segment's weights and, a branch, one
hidden state a prompt; of the logits, those of one prompt.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgeglm.export.graph.assemble import segments, stack_of
from edgeglm.export.prepare.types import Prepared
from edgeglm.export.prove.probes import Prompt, embed, prompt_inputs, vision_inputs
from edgeglm.export.prove.reference import Segment, Weights
from edgeglm.export.prove.values import Values, feeds, passed_on
from edgeglm.export.quantize.embedding import EmbeddingScheme, encode_embedding, gather
from edgeglm.export.quantize.rounded import RoundedWeights
from edgeglm.export.quantize.schemes import Scheme, parse_scheme
from edgeglm.roles import DECODER, TABLE, ModuleName, encoder_of


class Watch(Protocol):
    """A listener to the segments that the original passes through."""

    def begin(self, module: ModuleName, part: str, graph: ir.Graph) -> None:
        """Start with a segment."""

    def end(self) -> None:
        """End it: all prompts have passed."""


ORIGINAL = ""
# Tokens that a weight multiplies at once: with fewer, reading it takes a good part of the time.
TOGETHER = 512
Branches = dict[str, list[Values]]


def cut_into_groups(prompts: Sequence[Prompt]) -> list[slice]:
    """Return the prompts that pass through a segment together: as many as have `TOGETHER` tokens, or patches."""
    starts, tokens = [0], 0
    for index, prompt in enumerate(prompts):
        own = max(len(prompt.tokens), 0 if prompt.patches is None else len(prompt.patches))
        if index and tokens + own > TOGETHER:
            starts, tokens = [*starts, index], 0
        tokens += own
    return [slice(start, stop) for start, stop in zip(starts, [*starts[1:], len(prompts)], strict=True)]


class Walk:
    """The shared inputs of all segments: prompts, the original's weights, and the precision of each rounded part."""

    def __init__(
        self,
        prepared: Prepared,
        prompts: Sequence[Prompt],
        original: Weights,
        parts: Mapping[str, str],
        watch: Watch | None = None,
    ) -> None:
        self.watch = watch
        self.prepared, self.prompts, self.original, self.parts = prepared, prompts, original, parts
        self.source = replace(prepared.checkpoint, keep_pages=True)

    def logits(self) -> Iterator[tuple[str, NDArray[np.float32]]]:
        """Yield by prompt each branch and its logits, the original's first.

        They are of the tokens of the answer: (answer, 1, vocabulary); of the next one without an answer.
        """
        probe, part = self.prepared.probe, f"{DECODER}.back"
        branches: Branches = {ORIGINAL: [{} for _ in self.prompts]}
        if probe.model.vision and all(prompt.patches is not None for prompt in self.prompts):
            branches = {ORIGINAL: [vision_inputs(self.prepared, prompt) for prompt in self.prompts]}
            name = encoder_of("image")
            branches = self._pass(name, segments(stack_of(name, probe), "portable"), branches)
        *blocks, (_, back) = segments(stack_of(DECODER, probe), "portable")
        branches = self._pass(DECODER, blocks, self._embed(branches))
        original = Segment(back, self.original)
        if self.watch:
            self.watch.begin(DECODER, "back", back.graph)
        rounded = Segment(back, self._rounded(DECODER, part)) if part in self.parts else None
        for index, prompt in enumerate(self.prompts):
            for branch, values in branches.items():
                yield branch, _logits(original, values[index], prompt)
            if rounded:
                yield part, _logits(rounded, branches[ORIGINAL][index], prompt)
        if self.watch:
            self.watch.end()

    def _pass(self, module: ModuleName, graphs: Iterable[tuple[str, ir.Model]], branches: Branches) -> Branches:
        """Return all branches through segments of a module."""
        for name, graph in graphs:
            part, inputs = f"{module}.{name}", graph.graph.inputs

            def through(segment: Segment, states: Sequence[Values]) -> list[Values]:
                made: list[Values] = []
                for group in cut_into_groups(self.prompts):
                    outputs = segment.run_together([feeds(inputs, values) for values in states[group]])  # noqa: B023
                    made += [passed_on(output) for output in outputs]
                return [{**values, **output} for values, output in zip(states, made, strict=True)]

            original = Segment(graph, self.original)
            if self.watch:
                self.watch.begin(module, name, graph.graph)
            after = {branch: through(original, states) for branch, states in branches.items()}
            if self.watch:
                self.watch.end()
            if part in self.parts:
                rounded = Segment(graph, self._rounded(module, part))
                after[part] = through(rounded, branches[ORIGINAL])
            branches = after
        return branches

    def _rounded(self, module: str, part: str) -> RoundedWeights:
        dialect = next(prepared.choice.dialect for prepared in self.prepared.modules if prepared.choice.name == module)
        found = self.prepared.calibration
        inputs, ranges = (found.inputs, found.ranges) if found else ({}, {})
        return RoundedWeights(self.source, parse_scheme(self.parts[part]), dialect, inputs, ranges)

    def _embed(self, branches: Branches) -> Branches:
        """Return the decoder's inputs from the pictures' features, and one more branch for a rounded table."""
        rows = [embed(self.prepared, prompt) for prompt in self.prompts]
        embedded = {branch: self._inputs(values, rows) for branch, values in branches.items()}
        if TABLE in self.parts:
            scheme = parse_scheme(self.parts[TABLE])
            embedded[TABLE] = self._inputs(branches[ORIGINAL], [_rounded(scheme, row) for row in rows])
        return embedded

    def _inputs(self, values: Sequence[Values], rows: Sequence[NDArray[np.float32]]) -> list[Values]:
        features = [state.get("features") for state in values]
        together = zip(self.prompts, features, rows, strict=True)
        return [prompt_inputs(self.prepared, replace(prompt, features=seen), row) for prompt, seen, row in together]


def _rounded(scheme: Scheme, rows: NDArray[np.float32]) -> NDArray[np.float32]:
    return gather(encode_embedding(_embedding(scheme), rows), np.arange(len(rows)))


def _embedding(scheme: Scheme) -> EmbeddingScheme:
    return scheme  # type: ignore[return-value]  # `choices` lets no other through


def _logits(back: Segment, values: Values, prompt: Prompt) -> NDArray[np.float32]:
    """Return the logits of the hidden states that predict the answer, each as its own prompt: (answer, 1, hidden)."""
    hidden = values["hidden"][0]
    last = hidden[-1 - prompt.answer : -1] if prompt.answer else hidden[-1:]
    logits: NDArray[np.float32] = back.run({"hidden": last[:, None]})["logits"]
    return logits
