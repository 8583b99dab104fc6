"""Ask transformers' own classes, without any hook of ours, what a traced model must compute.

The whole class that the config names is built, with one block of each kind, and called as its users call it: its
composition, masks, positions and cache are its own. Its blocks are watched, not changed.
"""

from __future__ import annotations

import importlib
import io
import json
from functools import cache
from itertools import accumulate
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from edgeglm.export.families.building import build_config
from edgeglm.export.families.registry import FAMILIES
from edgeglm.export.families.tower import Tower, watched
from edgeglm.export.model import Decoder, Model
from edgeglm.export.trace.narrow import RANK, factors, values

Answers = dict[str, Tensor]
# New tokens of each step: a prompt, a token behind it, and some more.
LENGTHS = (5, 1, 3)
# Tokens of a step whose logits are looked at.
LAST = 3
# How many positions are looked at, from the first to the last.
POSITIONS = 64
# How many words' logits are looked at, from the first to the last.
WORDS = 4096


class NarrowLinear(nn.Linear):
    """``y = L R x + b``; ``weight`` stays without values."""

    left: Tensor
    right: Tensor

    def forward(self, input: Tensor) -> Tensor:
        """(..., columns) to (..., rows)."""
        return nn.functional.linear(nn.functional.linear(input, self.right), self.left, self.bias)


class NarrowConvolution(_ConvNd):
    """A convolution whose kernels are the product L R, each row of R a kernel; ``weight`` stays without values."""

    left: Tensor
    right: Tensor

    def forward(self, input: Tensor) -> Tensor:
        """Compute as the class that it was made from."""
        kernels = self.right.reshape(RANK, *self.weight.shape[1:])
        channels: Tensor = self._conv_forward(input, kernels, None)
        return nn.functional.linear(channels.movedim(1, -1), self.left, self.bias).movedim(-1, 1)


class Unhooked:
    """A model of transformers with one block of each kind and random weights.

    Args:
        config: The checkpoint's, in JSON.
    """

    def __init__(self, config: str) -> None:
        settings: Any = build_config(json.loads(config))
        text = settings.get_text_config()
        text.num_hidden_layers, text.pad_token_id = 1, None  # nothing is padded
        self.family = FAMILIES[settings.architectures[0]]
        for encoder in self.family.encoders:
            setattr(getattr(settings, encoder.config), encoder.depth, 1)
        with torch.device("meta"):
            self.model: Any = getattr(transformers, settings.architectures[0])(settings).eval()
        self.generator = torch.Generator().manual_seed(0)
        table, head = self.model.get_input_embeddings(), self.model.get_output_embeddings()
        names = {module: self.family.stored_name(name) for name, module in self.model.named_modules()}
        if head.weight is table.weight:
            names[head] = names[table]  # where transformers ties them, a checkpoint has but one
        for module, name in names.items():
            if module is not table:  # which is not used, and too large
                self._fill(module, name)

    def _fill(self, module: nn.Module, name: str) -> None:
        if any(buffer.is_meta for buffer in module.buffers(recurse=False)):
            module.to_empty(device="cpu", recurse=False)
            self.model._init_weights(module)  # as transformers does for buffers that no checkpoint has
        is_narrow = _make_narrow(module, name)
        for key, parameter in list(module.named_parameters(recurse=False)):
            if not (is_narrow and key == "weight"):
                value = torch.from_numpy(values(f"{name}.{key}", parameter.shape))
                setattr(module, key, nn.Parameter(value, requires_grad=False))

    def answers(self, model: Model, context: int) -> bytes:
        """Return what a trace is to be fed and what it must give, as arrays of an .npz file.

        Args:
            model: What the trace is of.
            context: The largest number of positions.
        """
        found = self._decoder(model.decoder, context)
        towers = {encoder.name: encoder.tower for encoder in self.family.encoders}
        for name, encoder in model.encoders.items():
            tower: Tower = importlib.import_module(towers[name])
            with torch.no_grad():
                answers = tower.ask(self.model, encoder, self.generator)
            found |= {f"{name}.{key}": tensor for key, tensor in answers.items()}
        file = io.BytesIO()
        arrays: dict[str, Any] = {name: tensor.numpy() for name, tensor in found.items()}
        np.savez(file, **arrays)
        return file.getvalue()

    def _decoder(self, decoder: Decoder, context: int) -> Answers:
        """Positions from the first to the last with their angles, and the steps of one conversation."""
        axes = 3 if decoder.mrope_section else 1
        positions = torch.linspace(0, context - 1, min(POSITIONS, context)).long().expand(axes, 1, -1)
        hidden = self._hidden(positions.shape[-1], decoder.hidden)
        call, _ = self._decode(hidden, positions, transformers.DynamicCache())
        found = {"decoder.positions": positions, "decoder.cos": call.cos, "decoder.sin": call.sin}
        state = transformers.DynamicCache()
        for number, tokens in enumerate(_steps(context)):
            positions = self._positions(axes, context, tokens)
            hidden = self._hidden(len(tokens), decoder.hidden)
            call, logits = self._decode(hidden, positions, state)
            step = {"positions": positions, "hidden": hidden, "block": call.output}
            found |= {f"step.{number}.{name}": tensor for name, tensor in step.items()}
        words = torch.linspace(0, decoder.vocabulary - 1, min(WORDS, decoder.vocabulary)).long()
        return found | {"decoder.block": call.output, "decoder.words": words, "decoder.logits": logits[..., words]}

    def _hidden(self, length: int, width: int) -> Tensor:
        """(1, length, width), of very different sizes, so that the epsilon of a norm shows."""
        sizes = 10.0 ** -(torch.arange(length) % 4).float()
        return torch.randn(1, length, width, generator=self.generator) * sizes[:, None]

    def _positions(self, axes: int, context: int, tokens: range) -> Tensor:
        """(axes, 1, length), far from the start; with several axes, such as a picture's, in any order."""
        if axes > 1:
            return torch.randint(context, (axes, 1, len(tokens)), generator=self.generator)
        start = max(0, context - sum(LENGTHS))
        return torch.arange(start + tokens.start, start + tokens.stop).expand(1, 1, -1)

    @torch.no_grad()
    def _decode(self, hidden: Tensor, positions: Tensor, state: Any) -> tuple[SimpleNamespace, Tensor]:
        where = positions if len(positions) > 1 else positions[0]
        with watched(self.model.get_decoder().layers[0]) as call:
            output = self.model(
                inputs_embeds=hidden, position_ids=where, past_key_values=state, use_cache=True, logits_to_keep=LAST
            )
        return call, output.logits


@cache
def unhooked(config: str) -> Unhooked:
    """Build the model of a config, once for all its traces."""
    return Unhooked(config)


def _steps(context: int) -> list[range]:
    """Return the numbers of each step's tokens: as many as there are positions for."""
    steps = [range(end - length, end) for length, end in zip(LENGTHS, accumulate(LENGTHS), strict=True)]
    return [step for step in steps if step.stop <= context] or [range(1)]


def _make_narrow(layer: nn.Module, name: str) -> bool:
    """Have a layer on the meta device compute with narrow weights; False, and unchanged, if it is of no such kind."""
    if isinstance(layer, nn.Linear):
        kind: Any = NarrowLinear
    elif isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d) and layer.groups == 1:
        kind = type("Narrow", (NarrowConvolution, type(layer)), {})
    else:
        return False
    rows, columns = layer.weight.shape[0], layer.weight[0].numel()
    layer.__class__ = kind
    layer.left, layer.right = map(torch.from_numpy, factors(f"{name}.weight", rows, columns))
    return True
