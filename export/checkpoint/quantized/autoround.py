"""AutoRound: what it writes is packed as GPTQ or AWQ pack, and its packing_format says which.

Scales may be below zero, where its symmetric codes use their whole range.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from edgeglm.export.checkpoint.files import shown
from edgeglm.export.checkpoint.quantized import awq, gptq
from edgeglm.export.checkpoint.quantized.settings import Found, Settings
from edgeglm.export.checkpoint.tensor import Tensor

# Packed as GPTQ's second layout: zero points are stored as they are.
PLAIN = ("auto_round", "auto_round:gptqmodel", "auto_round:exllamav2", "auto_round:tritonv2")


def find_matrices(settings: Settings, stored: Mapping[str, Tensor]) -> Found:
    """Find the matrices that AutoRound quantized.

    Raises:
        UnsupportedError: They are no packed integers, or of several numbers of bits.
        DamagedFileError: Tensors are missing, or do not fit each other.
    """
    packing, bits = settings.word("packing_format", default="auto_round"), settings.number("bits")
    extra = settings.values.get("extra_config") or {}
    if not isinstance(extra, Mapping):
        raise settings.wrong("extra_config", extra)
    others = [own["bits"] for own in extra.values() if isinstance(own, Mapping) and own.get("bits") not in (None, bits)]
    if any(other != 16 for other in others):  # of 16 bits are those that it left as they were
        raise settings.unsupported(f"is quantized by AutoRound to {bits} bits and others, and edgeglm reads one number")
    active = settings.number("act_bits", default=16) < 16
    if "awq" in packing:
        found = awq.find_matrices(_with(settings, version=awq.LAYOUT), stored)
    elif packing in PLAIN or "gptq" in packing:
        layout = "gptq_v2" if packing in PLAIN else "gptq"
        found = gptq.find_matrices(_with(settings, checkpoint_format=layout), stored)
    else:
        raise settings.unsupported(
            f"is packed by AutoRound as {shown(packing)}, and edgeglm reads auto_gptq and auto_awq"
        )
    return Found(found.matrices, settings.notes(activations=active))


def _with(settings: Settings, **more: str) -> Settings:
    return replace(settings, values={**settings.values, **more})
