"""Build the graph of a module from traces: fuse within the block, stamp it, fuse across blocks, check its weights."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from edgeglm.engines import DIALECTS, Dialect
from edgeglm.errors import DamagedFileError
from edgeglm.export.graph.cache_order import check_cache_order
from edgeglm.export.graph.passes.fuse_linears import FuseLinears
from edgeglm.export.graph.passes.fuse_skip_norm import FuseSkipNorm
from edgeglm.export.graph.passes.join_split import JoinSplit
from edgeglm.export.graph.passes.merge_reshapes import MergeReshapes
from edgeglm.export.graph.passes.quick_gelu import QuickGelu
from edgeglm.export.graph.stamp import Names, stamp, stamp_one
from edgeglm.export.model import Rows, Stored
from edgeglm.export.trace.trace_request import Traces
from edgeglm.export.trace.tracer import Traced
from edgeglm.roles import ModuleName

# Each once on the one block, before it is stamped.
BLOCK_PASSES = (MergeReshapes(), FuseLinears(), JoinSplit(), QuickGelu())
# Across blocks, on the whole module.
MODULE_PASSES = (FuseSkipNorm(),)


@dataclass(frozen=True)
class Stack:
    """A module before it is stamped: its traces, how often the block comes, and what its weights are called.

    `back` are the beginnings of the names of those behind the blocks.
    """

    traces: Traces
    layers: int
    names: Names
    rename: Mapping[str, str]
    back: tuple[str, ...]

    def segment_of(self, weight: str) -> str:
        """Return the name of the segment that a checkpoint's weight belongs to."""
        head, tail = self.names.block.split("{layer}")
        number, _, _ = weight.removeprefix(head).partition(tail)
        if weight.startswith(head) and number.isdecimal():
            return f"layer.{number}"
        return "back" if weight.startswith(self.back) else "front"


def stack_of(name: ModuleName, traced: Traced) -> Stack:
    """Return the stack of one of a model's modules; its placeholders are named as in the checkpoint."""
    traces, decoder, encoder = traced.stacks[name], traced.model.decoder, traced.model.encoders.get(name)
    if encoder:
        return Stack(traces, encoder.layers, Names(encoder.prefix, encoder.blocks, encoder.prefix), {}, encoder.back)
    rename = {"norm": decoder.norm.removesuffix(".weight"), "head": decoder.head.removesuffix(".weight")}
    return Stack(traces, decoder.layers, Names("", decoder.blocks, ""), rename, tuple(rename.values()))


def build(stack: Stack, dialect: Dialect) -> ir.Model:
    """Return the graph of the whole module, with placeholders for what holds weights."""
    _fuse_block(stack.traces, dialect)
    model = stamp(stack.traces, stack.layers, stack.names, stack.rename)
    _fuse_module(model, dialect)
    check_cache_order(model)
    return model


def segments(stack: Stack, dialect: Dialect) -> Iterator[tuple[str, ir.Model]]:
    """Name and graph of the front, of each block alone, and of the back; what one gives the next takes."""
    traces, names = stack.traces, stack.names
    _fuse_block(traces, dialect)
    blocks = (
        (f"layer.{layer}", stamp_one(traces.block, f"layer.{layer}", names.block.format(layer=layer), layer))
        for layer in range(stack.layers)
    )
    front = stamp_one(traces.front, "front", names.front)
    back = stamp_one(traces.back, "back", names.back, rename=stack.rename)
    for name, model in itertools.chain([("front", front)], blocks, [("back", back)]):
        _fuse_module(model, dialect)
        yield name, model


def _fuse_block(traces: Traces, dialect: Dialect) -> None:
    for block_pass in BLOCK_PASSES if DIALECTS[dialect].contrib else ():
        block_pass(traces.block)


def _fuse_module(model: ir.Model, dialect: Dialect) -> None:
    for module_pass in (*(MODULE_PASSES if DIALECTS[dialect].contrib else ()), RemoveUnusedNodesPass()):
        module_pass(model)


def check_weights(weights: Iterable[Stored], source: Rows) -> None:
    """Check that the checkpoint has every tensor of a module, as large as the graph takes it.

    Raises:
        DamagedFileError: One is missing or has another size; the message names it.
        UnsupportedError: One is stored in a type that edgeglm cannot read.
    """
    for stored in weights:
        sizes = [_size(name, source) for name in stored.names]
        for name, (_, columns) in zip(stored.names, sizes, strict=True):
            if columns != stored.columns:
                why = f"expected {stored.columns} columns from config.json, found {columns}"
                raise _contradiction(source, name, why)
        if (found := sum(rows for rows, _ in sizes)) != stored.rows:
            why = f"expected {stored.rows} rows from config.json, found {found}"
            raise _contradiction(source, stored.names[0], why)


def _size(name: str, source: Rows) -> tuple[int, int]:
    shape = source.find(name).shape
    return shape[0] if shape else 1, math.prod(shape[1:])


def _contradiction(source: Rows, name: str, why: str) -> DamagedFileError:
    return DamagedFileError(f"{source.find(name).file}: {name}", why, "download the whole checkpoint again")
