"""Refuse from a checkpoint's headers what a device cannot run; `fit` checks the graphs of the rest."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from edgeglm.devices.profile import Profile
from edgeglm.errors import UnsupportedError
from edgeglm.export.model import Choice, KvType


def check_limits(choices: Iterable[Choice], profile: Profile) -> None:
    """Raise UnsupportedError for the first module that the device refuses: attention counts before the opset."""
    portable = [choice for choice in choices if choice.engine is not None and choice.kind.is_plain]
    for why, refused in (
        (
            "its GPU takes no attention of varying length (limits.dynamic_attention), and a conversation's grows",
            [choice for choice in portable if choice.is_decoder and not profile.limits.dynamic_attention.value],
        ),
        (
            f"takes ONNX up to opset {profile.limits.opset.value}, and GPU modules need "
            f"{max((choice.kind.opset for choice in portable), default=0)}",
            [choice for choice in portable if needs_more_opset(choice, profile)],
        ),
    ):
        for choice in refused:
            raise UnsupportedError(f"{profile.name}: {choice.name}", why, "give a profile that puts it on the CPU")


def with_kv(choices: Iterable[Choice], kv: KvType, profile: Profile) -> tuple[Choice, ...]:
    """Return the choices with the decoder's type of keys and values. Raises UnsupportedError if it has another."""
    placed = tuple(replace(choice, kv=kv) if choice.is_decoder else choice for choice in choices)
    for choice in placed:
        if choice.kv != "fp32" and not choice.kind.contrib:
            why = f"is made for ONNX Runtime on the CPU, and {profile.name} has its decoder elsewhere"
            raise UnsupportedError(f"--kv {kv}", why, "leave it out")
    return placed


def needs_more_opset(choice: Choice, profile: Profile) -> bool:
    """Return whether a module would be written in a later opset than the device takes."""
    return choice.kind.is_plain and choice.engine is not None and profile.limits.opset.value < choice.kind.opset
