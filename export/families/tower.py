"""Towers as families build them with torch: the parts that are traced, and what transformers' own gives for the proof.

The module that an `EncoderSpec` names has the functions of `Tower`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, Protocol

import torch
from torch import Tensor, nn

# Has transformers' attention be the dialect's, for a block that is called inside: given cosines and sines.
Hook = Callable[[Tensor, Tensor], AbstractContextManager[object]]
Answers = dict[str, Tensor]


@dataclass(frozen=True)
class Part:
    """A module to trace: example inputs by name, names of its outputs, and names of the axes that vary."""

    module: nn.Module
    inputs: Mapping[str, Tensor]
    outputs: tuple[str, ...]
    axes: Mapping[str, Mapping[int, str]]


class Tower(Protocol):
    """The functions of a tower's Python module."""

    def build(self, config: Any, attention: str) -> tuple[nn.Module, nn.Module]:
        """Return transformers' tower without its blocks, and one block, both on the meta device.

        Names of weights in the tower are those of the checkpoint behind the encoder's prefix.

        Args:
            config: The whole model's.
            attention: The name by which the tower is to look its attention up.
        """

    def parts(
        self, tower: Any, block: nn.Module, encoder: Any, name: str, dtype: torch.dtype, hook: Hook
    ) -> list[Part]:
        """Return front, block and back; weights are placeholders by now.

        The front gives ``hidden``, and cosines and sines (length, channels) called by the module's name; the back
        gives ``features``.

        Args:
            tower: transformers' tower, as `build` returns it.
            block: One of its blocks.
            encoder: Its description.
            name: The module's.
            dtype: The type of its inputs.
            hook: Computes attention in the dialect that is traced.
        """

    def ask(self, model: Any, encoder: Any, generator: torch.Generator) -> Answers:
        """Return what transformers' own model, with one block, makes of a random input.

        The keys are ``in.`` and the name of an input of the front; ``cos``, ``sin``, ``hidden`` before the block,
        ``block`` behind it, ``features``; angles ``some_cos`` and ``some_sin`` of the rows ``rows`` of the front's; and
        ``sizes``, pairs of a traced size and of its size here, the last ones of the back alone.

        Args:
            model: transformers' model of one block.
            encoder: The encoder's description.
            generator: Gives the input.
        """


@contextmanager
def watched(module: nn.Module) -> Iterator[SimpleNamespace]:
    """Note what a module is given and gives: its first input, its output, and its position embeddings."""
    call = SimpleNamespace()

    def note(_: nn.Module, arguments: tuple[Any, ...], named: Mapping[str, Any], output: Any) -> None:
        call.input, call.output = arguments[0], output[0] if isinstance(output, tuple) else output
        call.cos, call.sin = named.get("position_embeddings", (None, None))

    handle = module.register_forward_hook(note, with_kwargs=True)
    try:
        yield call
    finally:
        handle.remove()
