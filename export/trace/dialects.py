"""Dialects of attention and rotary positions for the engines: hooks on transformers' own blocks.

``ort``: ONNX Runtime's products of the queries with a buffer of keys and values, token by token in it, which is never
copied. ``portable``: opset 20, decomposed, keys and values concatenated, fp32 softmax.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from edgeglm.export.model import RotaryStyle

# transformers hands a "flash" implementation one call for a whole vision sequence, instead of one an image.
ATTENTION = "edgeglm_flash_attention"


@dataclass(frozen=True)
class Rotary:
    """A way to turn channels in pairs: neighbours, or a channel of the first half and one of the second."""

    is_interleaved: bool


# By a family's word. What turns otherwise gets a style of its own here; under another's name its trace is refused.
ROTARY_STYLES: Mapping[RotaryStyle, Rotary] = {
    "pairs": Rotary(is_interleaved=True),
    "halves": Rotary(is_interleaved=False),
}


class Step:
    """The key/value state of the one block that is being traced."""

    def __init__(self, cos: Tensor, sin: Tensor, *state: Tensor) -> None:
        self.cos, self.sin, self.state = cos, sin, state
        self.present: Sequence[Tensor] | None = None


def _flat(x: Tensor) -> Tensor:
    """Reshape (batch, heads, length, head) to (batch, length, heads * head)."""
    return x.transpose(1, 2).flatten(2)


class OrtAttention:
    """Plain operators over (cache_key, cache_value, mask) that copy no key; MultiHeadAttention without a state.

    The query heads that share a key head are the rows of one product with all keys. A cache holds the tokens of the
    step as its last ones: they are written into it by the runner's binding of the outputs (`docs/decisions/0018`).
    """

    def __init__(self, step: Step, style: RotaryStyle) -> None:
        self.step, self.is_interleaved = step, ROTARY_STYLES[style].is_interleaved

    def rotate(self, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, unsqueeze_dim: int = 1) -> tuple[Tensor, Tensor]:
        """Return queries and keys flattened; `attend` rotates both at once."""
        return _flat(q), _flat(k)

    def attend(self, module: Any, q: Tensor, k: Tensor, v: Tensor, *_: object, **settings: Any) -> tuple[Tensor, None]:
        """Return the attention of flat queries and keys, and of values (batch, heads, length, head)."""
        scale = settings["scaling"]
        if not self.step.state:
            return self._without_state(q, k, v, scale), None
        cache_key, cache_value, mask = self.step.state
        kv_heads, width = cache_key.shape[1:]
        q, *self.step.present = self._written(q, k, _flat(v), width)
        heads, length, filled = q.shape[-1] // width, q.shape[1], mask.shape[-1]
        rows = heads // kv_heads * length
        by_head = _reshaped(q, (-1, heads, width), (length, heads, width)).transpose(0, 1)
        folded = _reshaped(by_head, (kv_heads, -1, width), (kv_heads, rows, width))
        scores = _product(folded, cache_key, (kv_heads, rows, filled), transB=1, alpha=scale)
        masked = _reshaped(scores, (heads, -1, 0), (heads, length, filled)) + mask
        weights = _reshaped(torch.softmax(masked, -1), (kv_heads, -1, 0), tuple(scores.shape))
        mixed = _product(weights, cache_value, tuple(folded.shape))
        by_head = _reshaped(mixed, (heads, -1, width), (heads, length, width)).transpose(0, 1)
        return _reshaped(by_head, (1, -1, heads * width), tuple(q.shape)), None

    def _written(self, q: Tensor, k: Tensor, v: Tensor, width: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return rotated queries and keys, and values.

        New keys and values go to the cache. They leave operators before or at the one that gives the queries, so that
        all of them are there when the queries meet the cache.
        """
        sizes = [x.shape[-1] for x in (q, k, v)]
        turned, v = torch.cat([q, k, v], -1).split([sizes[0] + sizes[1], sizes[2]], -1)
        turned = torch.onnx.ops.rotary_embedding(
            turned,
            self.step.cos,
            self.step.sin,
            interleaved=self.is_interleaved,
            num_heads=turned.shape[-1] // width,
            rotary_embedding_dim=2 * self.step.cos.shape[-1],
        )
        q, k = turned.split(sizes[:2], -1)
        return q, k, v

    def _without_state(self, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        flat = [_flat(x) for x in (q, k, v)]
        return torch.onnx.ops.symbolic(
            "com.microsoft::MultiHeadAttention",
            flat,
            attrs={"num_heads": q.shape[1], "scale": scale},
            dtype=q.dtype,
            shape=tuple(flat[0].shape),
            version=1,
        )


def _reshaped(x: Tensor, target: tuple[int, ...], shape: tuple[Any, ...]) -> Tensor:
    """Return x by one Reshape to a constant target, whatever its sizes: -1 is what is left, 0 the size that it has."""
    return torch.onnx.ops.symbolic("Reshape", (x, torch.tensor(target)), dtype=x.dtype, shape=shape)


def _product(x: Tensor, cache: Tensor, shape: tuple[Any, ...], **attributes: float) -> Tensor:
    """Return the product of (heads, rows, n) with a cache (tokens, heads, head), which is read where it lies."""
    return torch.onnx.ops.symbolic(
        "com.microsoft::FusedMatMul",
        (x, cache),
        attrs={"transBatchB": 1, **attributes},
        dtype=x.dtype,
        shape=shape,
        version=1,
    )


class PortableAttention:
    """Plain operators over (past_key, past_value, mask): what every engine knows, with the softmax in fp32."""

    def __init__(self, step: Step) -> None:
        self.step = step

    def rotate(self, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, unsqueeze_dim: int = 1) -> tuple[Tensor, Tensor]:
        """Rotate halves: of neighbours the projections' rows are stored even channels first (`Linear.split_rotary`)."""
        return self._rotated(q), self._rotated(k)

    def _rotated(self, x: Tensor) -> Tensor:
        cos, sin = self.step.cos.unsqueeze(1), self.step.sin.unsqueeze(1)
        half = cos.shape[-1]
        even, odd, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
        return torch.cat([even * cos - odd * sin, odd * cos + even * sin, rest], dim=-1)

    def attend(self, module: Any, q: Tensor, k: Tensor, v: Tensor, *_: object, **settings: Any) -> tuple[Tensor, None]:
        """Return the attention of (batch, heads, length, head); query heads become rows of their key head."""
        mask: Tensor | None = None
        if self.step.state:
            past_key, past_value, mask = self.step.state
            k, v = torch.cat([past_key, k], dim=2), torch.cat([past_value, v], dim=2)
            self.step.present = (k, v)
        return self.attend_all(q, k, v, mask, settings["scaling"])

    @staticmethod
    def attend_all(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> tuple[Tensor, None]:
        """Return the attention over all of `k` and `v` that the mask shows."""
        batch, heads, length, width = q.shape
        folded = (q * scale).reshape(batch, k.shape[1], heads // k.shape[1] * length, width)
        scores = torch.matmul(folded, k.transpose(2, 3))
        # A step of one token is left folded: with one key head, LiteRT's converter makes a wrong graph of the reshape.
        if not (isinstance(length, int) and length == 1):
            scores = scores.reshape(batch, heads, length, -1)
        if mask is not None:
            scores = scores + mask
        # softmax(dtype=float32) of half inputs would lose its upcast in the exporter.
        weights = torch.softmax(scores.float(), -1).to(q.dtype)
        mixed = torch.matmul(weights.reshape(*folded.shape[:3], -1), v)
        return _flat(mixed.reshape(batch, heads, length, width)), None


Attention = OrtAttention | PortableAttention


@contextmanager
def hooked(
    modeling: ModuleType,
    attention: Callable[[Step], Attention],
    cos: Tensor,
    sin: Tensor,
    *state: Tensor,
    rotary: bool = True,
) -> Iterator[Step]:
    """Replace transformers' attention, and its rotary function unless not `rotary`, while a block is called."""
    step = Step(cos, sin, *state)
    hooks, original = attention(step), modeling.apply_rotary_pos_emb
    ALL_ATTENTION_FUNCTIONS.register(ATTENTION, hooks.attend)
    if rotary:
        modeling.apply_rotary_pos_emb = hooks.rotate  # type: ignore[attr-defined]
    try:
        yield step
    finally:
        modeling.apply_rotary_pos_emb = original  # type: ignore[attr-defined]
