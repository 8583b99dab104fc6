"""From traces to the graph of a module: fuse within the block, stamp it, fuse across blocks."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from edgeglm.export.model import Decoder, Dialect, Traces, Vision
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
