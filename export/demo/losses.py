"""The training forward pass and its losses.

A vision-language model this small does not find taps from the answers alone. Helper heads, thrown away
after training, ask every image token what lies under it and where, and the first answer tokens which
patch they point at.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import DynamicCache, Glm4vForConditionalGeneration
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.glm4v.modeling_glm4v import (
    Glm4vVisionAttention,
    Glm4vVisionBlock,
    Glm4vVisionModel,
    apply_rotary_pos_emb_vision,
)
from transformers.vision_utils import get_vision_position_ids

from edgeglm.export.demo.model import MERGE
from edgeglm.export.demo.packing import IGNORE, Batch, Packer
from edgeglm.export.demo.pictures import (
    CELL_COLUMNS,
    CELL_ROWS,
    CLASSES,
    COLUMNS,
    IMAGE_TOKENS,
    ROWS,
    Pictures,
    to_patches,
)
from edgeglm.export.demo.screens import CHINESE

FOLDED = "folded"  # the name of `_fold` in transformers' table
NOWHERE = -30_000.0  # a score that softmax makes 0
POINTER_LAYER = 2  # the decoder layer whose output must know where to point


@dataclass(frozen=True)
class Losses:
    """Cross-entropy of the answers, and the sum of the helper losses."""

    answer: Tensor
    helper: Tensor


def encode_images(vision: Glm4vVisionModel, patches: Tensor) -> Tensor:
    """Run `Glm4vVisionModel` on a batch of equal grids: (B, N, C*P*P) -> (B, N / MERGE**2, hidden).

    The same computation as its forward, with one attention call for the whole batch instead of one an image.
    """
    grid = torch.tensor([[1, ROWS, COLUMNS]], device=patches.device)
    positions = get_vision_position_ids(grid, MERGE)
    batch, count, _ = patches.shape
    weight = vision.patch_embed.proj.weight.sum(2).flatten(1)  # a still image is two equal frames
    hidden = vision.post_conv_layernorm(F.linear(patches, weight, vision.patch_embed.proj.bias))
    nowhere = torch.zeros(count, hidden.shape[-1], device=patches.device)
    hidden = hidden + vision.embeddings(nowhere, [count], grid, positions[:, 0], positions[:, 1])
    cos, sin = vision.rotary_pos_emb(hidden, positions)
    for block in cast(Iterable[Glm4vVisionBlock], vision.blocks):
        hidden = hidden + _attend(block.attn, block.norm1(hidden), cos, sin)
        hidden = hidden + block.mlp(block.norm2(hidden))
    hidden = vision.post_layernorm(hidden)
    down = vision.downsample
    kernel = down.weight.permute(0, 2, 3, 1).reshape(down.out_channels, -1)
    merged: Tensor = vision.merger(F.linear(hidden.view(batch, count // MERGE**2, -1), kernel, down.bias))
    return merged


def _attend(attention: Glm4vVisionAttention, hidden: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    heads = attention.qkv(hidden).view(*hidden.shape[:2], 3, attention.num_heads, -1)
    query, key, value = heads.unbind(2)
    query, key = apply_rotary_pos_emb_vision(query, key, cos, sin)
    query, key, value = (x.transpose(1, 2).to(value.dtype) for x in (query, key, value))
    # Of so short a sequence the scores fit into the cache, and their gradient is faster than that of the fused kernel.
    mixed = (query * query.shape[-1] ** -0.5 @ key.transpose(-1, -2)).softmax(-1) @ value
    projected: Tensor = attention.proj(mixed.transpose(1, 2).reshape(hidden.shape))
    return projected


class Helper(nn.Module):
    """Heads on image tokens (class, offset, on/off, row, column) and on the first answer tokens (patch)."""

    def __init__(self, model: Glm4vForConditionalGeneration, packer: Packer) -> None:
        super().__init__()
        width = model.lm_head.in_features
        self.scale = nn.Parameter(torch.tensor(1.0))
        self.bias = nn.Parameter(torch.full((len(CLASSES),), -2.0))
        self.inside = nn.Linear(width, 3 * len(CLASSES))
        self.place = nn.Linear(width, CELL_ROWS + CELL_COLUMNS)
        self.pointer = nn.Linear(width, ROWS + 1 + COLUMNS + 1)  # the last of each: nowhere
        self.names = [packer.encode(f" {name}") + packer.encode(CHINESE[name]) for name in CLASSES]
        self.hidden = torch.empty(0)
        model.model.language_model.layers[POINTER_LAYER].register_forward_hook(self._keep)

    def _keep(self, _module: nn.Module, _inputs: object, output: Tensor) -> None:
        self.hidden = output

    def vision_loss(self, image_tokens: Tensor, embedding: Tensor, pictures: Pictures) -> Tensor:
        """Return what each image token shows; classes are compared with the embeddings of their names."""
        names = torch.stack([embedding[ids].mean(0) for ids in self.names])
        logits = (image_tokens @ names.T).float() * self.scale + self.bias
        image, cell, label = pictures.cells.unbind(1)
        present = torch.zeros_like(logits)
        present[image, cell, label] = 1
        weight = torch.tensor(8.0, device=logits.device)
        classes = F.binary_cross_entropy_with_logits(logits, present, pos_weight=weight) * len(CLASSES) / 4
        if not len(label):
            return classes + self._place_loss(image_tokens)
        found = self.inside(image_tokens[image, cell]).float().view(-1, len(CLASSES), 3)
        found = found[torch.arange(len(label), device=label.device), label]
        offset = F.l1_loss(found[:, :2], pictures.inside[:, :2])
        state = F.binary_cross_entropy_with_logits(found[:, 2], pictures.inside[:, 2])
        return classes + offset + 0.5 * state + self._place_loss(image_tokens)

    def _place_loss(self, image_tokens: Tensor) -> Tensor:
        rows, columns = self.place(image_tokens).float().split([CELL_ROWS, CELL_COLUMNS], dim=-1)
        cell = torch.arange(IMAGE_TOKENS, device=image_tokens.device).repeat(len(image_tokens))
        row, column = cell // CELL_COLUMNS, cell % CELL_COLUMNS
        return F.cross_entropy(rows.flatten(0, 1), row) + F.cross_entropy(columns.flatten(0, 1), column)

    def pointer_loss(self, pointers: Tensor) -> Tensor:
        """Score whether the decoder knows the target's patch at the beginning of the answer and of the action."""
        spot, row, column = pointers.unbind(1)
        rows, columns = self.pointer(self.hidden[0, spot]).float().split([ROWS + 1, COLUMNS + 1], dim=-1)
        return 0.5 * (F.cross_entropy(rows, row) + F.cross_entropy(columns, column))


def vision_loss(model: Glm4vForConditionalGeneration, helper: Helper, pictures: Pictures) -> Tensor:
    """Return the helper losses of the tower alone: no decoder, and the names' embeddings stay as they are."""
    image_tokens = encode_images(model.model.visual, to_patches(pictures.pixels))
    return helper.vision_loss(image_tokens, model.model.language_model.embed_tokens.weight.detach(), pictures)


def losses(model: Glm4vForConditionalGeneration, helper: Helper, batch: Batch, learns_prompt: bool = True) -> Losses:
    """Return the both losses of a packed batch; without `learns_prompt` the system prompt has no gradient."""
    image_tokens, hidden = read(model, batch, learns_prompt)
    is_asked = batch.labels != IGNORE
    logits = model.lm_head(hidden[is_asked]).float()
    answer = F.cross_entropy(logits, batch.labels[is_asked], reduction="sum")
    answer = answer / is_asked.sum().clamp(min=1)  # a batch that only points may have none
    seen = helper.vision_loss(image_tokens, model.model.language_model.embed_tokens.weight, batch.pictures)
    return Losses(answer, seen + helper.pointer_loss(batch.pointers))


def read(model: Glm4vForConditionalGeneration, batch: Batch, learns_prompt: bool) -> tuple[Tensor, Tensor]:
    """Return the image tokens (B, IMAGE_TOKENS, hidden) and the decoder's last hidden state (L, hidden)."""
    image_tokens = encode_images(model.model.visual, to_patches(batch.pictures.pixels))
    text = model.model.language_model
    position, picture = batch.images.unbind(1)
    places = position[:, None] + torch.arange(IMAGE_TOKENS, device=position.device)
    embedded = text.embed_tokens(batch.tokens)
    embedded = embedded.index_put((places,), image_tokens[picture].to(embedded.dtype))
    with torch.set_grad_enabled(learns_prompt and torch.is_grad_enabled()):
        cache = _read_system(model, batch)
    zero = torch.zeros((), dtype=torch.bfloat16, device=position.device)
    text.config._attn_implementation = FOLDED
    try:
        output = text(
            inputs_embeds=embedded[None],
            position_ids=batch.positions[:, None],
            attention_mask=zero.view(1, 1, 1, 1),  # four dimensions are taken as they are: `masks` say who sees whom
            past_key_values=cache,
            use_cache=True,
            masks=[zero.masked_fill(~mask, NOWHERE) for mask in batch.masks()],
        )
    finally:
        text.config._attn_implementation = "sdpa"
    return image_tokens, output.last_hidden_state[0]


def _fold(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor,
    scaling: float,
    masks: list[Tensor],
    **_: object,
) -> tuple[Tensor, None]:
    """Attend in each group by itself: none pays for another's length, and the scores of one fit into the cache.

    query (1, heads, L, D), key and value (1, key heads, S + L, D), masks (N, S + N) or (N, N) of each group; returns
    (1, L, heads, D).
    """
    lengths, shared = [len(mask) for mask in masks], key.shape[2] - query.shape[2]
    queries = (query[0] * scaling).to(value.dtype).split(lengths, 1)
    keys, values = (x[0].to(value.dtype).split([shared, *lengths], 1) for x in (key, value))
    mixed = []
    for number, (rows, mask) in enumerate(zip(queries, masks, strict=True), start=1):
        seen = (0, number) if mask.shape[1] > len(mask) else (number,)
        mixed.append(_mix(rows, torch.cat([keys[i] for i in seen], 1), torch.cat([values[i] for i in seen], 1), mask))
    return torch.cat(mixed, 1).transpose(0, 1)[None], None


def _mix(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    """Attend (heads, N, D) to (key heads, M, D), with the query heads of a key head as rows of one product."""
    scores = query.reshape(len(key), -1, query.shape[-1]) @ key.transpose(1, 2)
    weights = (scores.view(len(query), *mask.shape) + mask).softmax(-1)
    return (weights.view(scores.shape) @ value).view(query.shape)


ALL_ATTENTION_FUNCTIONS.register(FOLDED, _fold)


def _read_system(model: Glm4vForConditionalGeneration, batch: Batch) -> DynamicCache:
    """Return the keys and values of the system prompt, computed once and shared by the batch's groups."""
    positions = torch.arange(len(batch.system), device=batch.system.device).expand(3, 1, -1)
    text = model.model.language_model
    alone = text(inputs_embeds=text.embed_tokens(batch.system[None]), position_ids=positions, use_cache=True)
    cache: DynamicCache = alone.past_key_values
    return cache
