"""Dialects of attention and rotary positions for the engines: hooks on transformers' own blocks.

``ort``: ONNX Runtime's fused GroupQueryAttention on one shared key/value buffer, rotary inside it where a token has
one position. ``portable``: opset 20, decomposed, keys and values concatenated, fp32 softmax.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
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
        self.present: tuple[Tensor, Tensor] | None = None


def _flat(x: Tensor) -> Tensor:
    """Reshape (batch, heads, length, head) to (batch, length, heads * head)."""
    return x.transpose(1, 2).flatten(2)


class OrtAttention:
    """GroupQueryAttention over (past_key, past_value, seqlens_k, total_length); MultiHeadAttention without a state."""

    def __init__(self, step: Step, rotary_inside: bool, style: RotaryStyle) -> None:
        self.step, self.rotary_inside, self.is_interleaved = step, rotary_inside, ROTARY_STYLES[style].is_interleaved

    def rotate(self, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, unsqueeze_dim: int = 1) -> tuple[Tensor, Tensor]:
        """Return queries and keys flattened, and rotated unless attention does it."""
        if self.rotary_inside:
            return _flat(q), _flat(k)
        return self._rotated(q), self._rotated(k)

    def _rotated(self, x: Tensor) -> Tensor:
        step = self.step
        return torch.onnx.ops.rotary_embedding(
            _flat(x),
            step.cos,
            step.sin,
            interleaved=self.is_interleaved,
            num_heads=x.shape[1],
            rotary_embedding_dim=2 * step.cos.shape[-1],
        )

    def attend(self, module: Any, q: Tensor, k: Tensor, v: Tensor, *_: object, **settings: Any) -> tuple[Tensor, None]:
        """Return the attention of flat queries and keys, and of values (batch, heads, length, head)."""
        scale = settings["scaling"]
        if not self.step.state:
            return self._without_state(q, k, v, scale), None
        past_key, past_value, lengths, total = self.step.state
        heads, kv_heads = q.shape[-1] // v.shape[-1], v.shape[1]
        rotary = (self.step.cos, self.step.sin) if self.rotary_inside else ()
        output, key, value = torch.onnx.ops.symbolic_multi_out(
            "com.microsoft::GroupQueryAttention",
            (q, k, _flat(v), past_key, past_value, lengths, total, *rotary),
            attrs={
                "num_heads": heads,
                "kv_num_heads": kv_heads,
                "scale": scale,
                "do_rotary": int(self.rotary_inside),
                "rotary_interleaved": int(self.rotary_inside and self.is_interleaved),
            },
            dtypes=(q.dtype, past_key.dtype, past_value.dtype),
            shapes=(tuple(q.shape), tuple(past_key.shape), tuple(past_value.shape)),
            version=1,
        )
        self.step.present = (key, value)
        return output, None

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
        scores = torch.matmul(folded, k.transpose(2, 3)).reshape(batch, heads, length, -1)
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
