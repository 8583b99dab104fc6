"""The original, teacher-forced: transformers' own block, filled layer by layer, so that one is in memory at a time.

The hidden states of a batch of sequences pass through one block, whose weights are then overwritten by the next one's.
Logits are computed for some rows of the vocabulary at a time, and only what is asked of them is kept.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edgeglm.errors import DamagedFileError, UsageError
from edgeglm.export.families.building import build_config
from edgeglm.export.families.registry import family_of
from edgeglm.export.families.spec import Family
from edgeglm.export.model import Model, Original
from edgeglm.runtimes.inputs.positions import prompt_positions

# Of fp32: rows of a weight that are read at once, or logits that are computed at once.
CHUNK_BYTES = 32 << 20
# Hidden states of the sequences that go through the blocks together.
BATCH_BYTES = 128 << 20


class StreamedDecoder:
    """The text model of a checkpoint, in fp32.

    Args:
        source: The checkpoint.
    """

    def __init__(self, source: Original) -> None:
        config, family, modeling = parts_of(source.config)
        model: Model = family.describe(config, None)
        text = config.get_text_config()
        # Causal without a mask, which no model of these families adds anything to.
        text._attn_implementation = "sdpa"
        self.source, self.decoder = source, model.decoder
        self.rotary = getattr(modeling, family.decoder.rotary)(config=text)
        with torch.device("meta"):
            block = getattr(modeling, family.decoder.block)(text, 0)
        self.block: nn.Module = block.to(torch.float32).to_empty(device="cpu").eval()
        self.norm: nn.Module = deepcopy(block.input_layernorm)

    @torch.inference_mode()
    def score(self, sequences: NDArray[np.int64], count: int) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Return the last `count` tokens of every sequence, each given all before it.

        Args:
            sequences: Token ids (n, length), all text.
            count: Less than `length`.

        Returns:
            (n, count): the log-probability of each token, and the token that the model finds the likeliest.

        Raises:
            UsageError: The model has no such token.
        """
        if sequences.max() >= self.decoder.vocabulary:
            why = f"has {self.decoder.vocabulary} tokens, and the text's are of another vocabulary"
            raise UsageError(self.source.folder, why, "give the checkpoint that the bundle was made from")
        length = sequences.shape[1] - 1
        batch = max(1, BATCH_BYTES // (4 * length * self.decoder.hidden))
        batches = [sequences[start : start + batch] for start in range(0, len(sequences), batch)]
        scores = [self.judge(self.hidden(chunk[:, :-1])[:, -count:], chunk[:, -count:]) for chunk in batches]
        log_probabilities, top = zip(*scores, strict=True)
        return np.concatenate(log_probabilities), np.concatenate(top)

    @torch.inference_mode()
    def hidden(self, tokens: NDArray[np.int64]) -> Tensor:
        """Return the last hidden states (n, length, hidden) of token ids (n, length), after the last norm."""
        hidden = torch.stack([self.embed(sequence) for sequence in tokens])
        where = prompt_positions([False] * tokens.shape[1], [] if self.decoder.mrope_section else None)
        self.run([hidden[index : index + 1] for index in range(len(hidden))], [where] * len(hidden))
        return hidden

    def embed(self, tokens: NDArray[np.int64]) -> Tensor:
        """Return the embeddings (length, hidden) of token ids (length)."""
        known, places = np.unique(tokens, return_inverse=True)
        rows = [self.source.rows(self.decoder.embedding, token, token + 1) for token in known.tolist()]
        return torch.from_numpy(np.concatenate(rows)[places])

    @torch.inference_mode()
    def run(self, hidden: Sequence[Tensor], positions: Sequence[NDArray[np.int64]]) -> None:
        """Replace the embeddings of each sequence, (1, length, hidden), by the last hidden states, after the last norm.

        `positions` are those of `prompt_positions` in `runtimes/inputs/positions.py`; what several share is one array.
        """
        angles = {id(where): self._angles(states, where) for states, where in zip(hidden, positions, strict=True)}
        for layer in range(self.decoder.layers):
            fill(self.source, self.block, self.decoder.blocks.format(layer=layer))
            for states, where in zip(hidden, positions, strict=True):
                states.copy_(self.block(states, attention_mask=None, position_embeddings=angles[id(where)]))
        fill(self.source, self.norm, self.decoder.norm.removesuffix("weight"))
        for states in hidden:
            states.copy_(self.norm(states))

    def _angles(self, hidden: Tensor, where: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        positions = torch.from_numpy(where)
        cosines, sines = self.rotary(hidden, positions if self.decoder.mrope_section else positions[0])
        return cosines, sines

    @torch.inference_mode()
    def judge(self, hidden: Tensor, targets: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Return log-probabilities of `targets` (…) and the likeliest tokens, from hidden states (…, hidden)."""
        rows, wanted = hidden.reshape(-1, self.decoder.hidden), torch.from_numpy(targets.reshape(-1))
        total = torch.full((len(rows),), -torch.inf, dtype=torch.float64)
        best, top = torch.full((len(rows),), -torch.inf), torch.zeros(len(rows), dtype=torch.int64)
        right = torch.empty(len(rows))
        for start, stop in _chunks(self.decoder.vocabulary, 4 * max(len(rows), self.decoder.hidden)):
            logits = rows @ torch.from_numpy(self.source.rows(self.decoder.head, start, stop)).T
            total = torch.logaddexp(total, logits.logsumexp(-1).double())
            highest, index = logits.max(-1)
            top = torch.where(highest > best, index + start, top)
            best = torch.maximum(best, highest)
            inside = (wanted >= start) & (wanted < stop)
            right[inside] = logits[inside, wanted[inside] - start]
        shape = targets.shape
        return (right.double() - total).numpy().reshape(shape), top.numpy().reshape(shape)


def parts_of(config: Mapping[str, Any]) -> tuple[Any, Family, Any]:
    """Return transformers' config of a checkpoint, its family, and transformers' module of it."""
    family = family_of(config)
    return build_config(config), family, importlib.import_module(family.modeling)


def has_mrope(source: Original) -> bool:
    """Return whether positions count time, row and column."""
    config, family, _ = parts_of(source.config)
    return bool(family.describe(config, None).decoder.mrope_section)


def fill(source: Original, module: nn.Module, prefix: str) -> None:
    """Overwrite a module's weights by those of the checkpoint.

    Args:
        source: The checkpoint.
        module: A weight that it has on the meta device too.
        prefix: What the checkpoint's names have before the module's own.

    Raises:
        DamagedFileError: One of them has another shape.
    """
    for name, parameter in module.named_parameters():
        stored = source.find(prefix + name)
        if stored.shape != tuple(parameter.shape):
            why = f"has the shape {list(stored.shape)}, and the model needs {list(parameter.shape)}"
            raise DamagedFileError(f"{stored.file}: {prefix}{name}", why, "download the checkpoint again")
        for start, stop in _chunks(len(parameter), 4 * math.prod(parameter.shape[1:])):
            parameter[start:stop] = torch.from_numpy(source.rows(prefix + name, start, stop))


def _chunks(count: int, row_bytes: int) -> Sequence[tuple[int, int]]:
    step = max(1, CHUNK_BYTES // row_bytes)
    return [(start, min(start + step, count)) for start in range(0, count, step)]
