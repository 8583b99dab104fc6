"""Request to the tracing process, and its result: plain data, so that both sides share it."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from edgeglm.engines import Dialect


@dataclass(frozen=True)
class Traces:
    """The three traced graphs of a module; what one gives, the next takes by its name."""

    front: ir.Model
    block: ir.Model
    back: ir.Model


@dataclass(frozen=True)
class TraceRequest:
    """A request for traces of a checkpoint's architecture.

    `config` is the checkpoint's in JSON, `context` the largest number of positions, `grid` the rows and columns of a
    picture's patches (None for a model without pictures), `half` traces in fp16 with norms and softmax in fp32.
    """

    config: str
    dialect: Dialect
    context: int
    grid: tuple[int, int] | None = None
    half: bool = False


# A module is traced in three graphs; the outputs of one are inputs of the next by their names.
PARTS = ("front", "block", "back")
# The name of what transformers gives, among the files of a trace; it is not kept.
ANSWERS = "answers.npz"
