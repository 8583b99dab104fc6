"""From traces to the graph of a module: fuse within the block, stamp it, fuse across blocks; and what it must find."""

from __future__ import annotations

import math
from collections.abc import Iterable

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from edgeglm.errors import DamagedFileError
from edgeglm.export.model import Decoder, Dialect, Rows, Stored, Traces, Vision
from edgeglm.export.passes.fuse_linears import FuseLinears
from edgeglm.export.passes.fuse_skip_norm import FuseSkipNorm
from edgeglm.export.passes.merge_reshapes import MergeReshapes
from edgeglm.export.passes.pack_attention import PackAttention
from edgeglm.export.passes.quick_gelu import QuickGelu
from edgeglm.export.stamp import Names, stamp

# Each once on the one block, before it is stamped.
BLOCK_PASSES = {
    "ort": (MergeReshapes(), FuseLinears(), PackAttention(), QuickGelu()),
    "portable": (),
}
# Across blocks, on the whole module.
MODULE_PASSES = {"ort": (FuseSkipNorm(),), "portable": ()}


def build_decoder(traces: Traces, decoder: Decoder, dialect: Dialect) -> ir.Model:
    """The decoder's graph, its placeholders named as in the checkpoint."""
    rename = {"norm": decoder.norm.removesuffix(".weight"), "head": decoder.head.removesuffix(".weight")}
    return _build(traces, decoder.layers, Names("", decoder.blocks, ""), dialect, rename)


def build_vision(traces: Traces, vision: Vision, dialect: Dialect) -> ir.Model:
    """The vision tower's graph; its ``position`` input is the position embedding of the grid."""
    return _build(traces, vision.layers, Names(vision.prefix, vision.blocks, vision.prefix), dialect, {})


def _build(traces: Traces, layers: int, names: Names, dialect: Dialect, rename: dict[str, str]) -> ir.Model:
    for block_pass in BLOCK_PASSES[dialect]:
        block_pass(traces.block)
    model = stamp(traces, layers, names, rename)
    for module_pass in (*MODULE_PASSES[dialect], RemoveUnusedNodesPass()):
        module_pass(model)
    return model


def check_weights(weights: Iterable[Stored], source: Rows) -> None:
    """Check that the checkpoint has every tensor of a module, as large as the graph takes it.

    Raises:
        DamagedFileError: One is missing or has another size; the message names it.
    """
    for stored in weights:
        sizes = [_size(name, source) for name in stored.names]
        for name, (_, columns) in zip(stored.names, sizes, strict=True):
            if columns != stored.columns:
                raise _contradiction(name, f"has {columns} columns where config.json makes it {stored.columns}")
        if sum(rows for rows, _ in sizes) != stored.rows:
            raise _contradiction(stored.names[0], f"has not the {stored.rows} rows that config.json makes it have")


def _size(name: str, source: Rows) -> tuple[int, int]:
    if name not in source.tensors:
        raise _contradiction(name, "is missing, and the model needs it")
    shape = source.tensors[name].shape
    return shape[0] if shape else 1, math.prod(shape[1:])


def _contradiction(name: str, why: str) -> DamagedFileError:
    return DamagedFileError(name, why, "download the whole checkpoint again")
