"""Refuse from a checkpoint's headers what a device cannot run; `fit` checks the graphs of the rest."""

from __future__ import annotations

from collections.abc import Iterable

from edgeglm.devices.profile import Profile
from edgeglm.errors import UnsupportedError
from edgeglm.export.model import Choice


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


def needs_more_opset(choice: Choice, profile: Profile) -> bool:
    """Return whether a module would be written in a later opset than the device takes."""
    return choice.kind.is_plain and choice.engine is not None and profile.limits.opset.value < choice.kind.opset
