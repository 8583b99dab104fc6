"""GLM-4.1V's vision tower with torch; importing this needs transformers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.backends import mkldnn
from transformers.models.glm4v.modeling_glm4v import Glm4vVisionModel
from transformers.vision_utils import get_vision_position_ids

from edgeglm.export.families.registry import image_config
from edgeglm.export.families.tower import Answers, Hook, Part, watched
from edgeglm.export.model import Grid, Vision

# How many patches' angles are looked at, from the first to the last.
PATCHES = 64
# The most patches that blocks and merger are computed for, and the grid in their place, in merged patches.
MAX_PATCHES = 24
SMALL_GRID = (2, 3)


class VisionFront(nn.Module):
    """Patches (count, channels * frames * patch * patch) and position embedding to the first hidden state."""

    cos: Tensor
    sin: Tensor

    def __init__(self, tower: Any, grid: Grid, dtype: torch.dtype) -> None:
        super().__init__()
        self.embed, self.norm = tower.patch_embed, tower.post_conv_layernorm
        positions = get_vision_position_ids(torch.tensor([[1, *grid]]), tower.spatial_merge_size)
        cos, sin = tower.rotary_pos_emb(torch.zeros(1), positions)
        self.register_buffer("cos", cos.to(dtype))
        self.register_buffer("sin", sin.to(dtype))

    def forward(self, pixel_values: Tensor, position: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the hidden state (count, hidden), cosines and sines (count, head)."""
        return self.norm(self.embed.proj(pixel_values)) + position, self.cos, self.sin


class VisionBlock(nn.Module):
    """A vision block over one picture."""

    def __init__(self, block: nn.Module, hook: Hook, count: int) -> None:
        super().__init__()
        self.block, self.hook, self.count = block, hook, count

    def forward(self, hidden: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """(count, hidden) to the same."""
        with self.hook(cos, sin):
            output: Tensor = self.block(hidden, cu_seqlens=None, max_seqlen=self.count, position_embeddings=(cos, sin))
        return output


class VisionBack(nn.Module):
    """Hidden state (count, hidden) to features (count / merge**2, output): last norm, merging convolution, MLP."""

    def __init__(self, tower: Any) -> None:
        super().__init__()
        self.norm, self.downsample, self.merger = tower.post_layernorm, tower.downsample, tower.merger
        self.merge = tower.spatial_merge_size

    def forward(self, hidden: Tensor) -> Tensor:
        """Merge as the end of `Glm4vVisionModel.forward`."""
        merged = self.norm(hidden).view(-1, self.merge, self.merge, hidden.shape[-1]).permute(0, 3, 1, 2)
        features: Tensor = self.merger(self.downsample(merged))
        return features


def tower_of(vision: Any, attention: str) -> Any:
    """Return transformers' tower on the meta device; its rotary embedding, which has no weights, is computed."""
    with torch.device("meta"):
        tower = Glm4vVisionModel(vision)
    tower.config._attn_implementation = attention  # not before: the tower would look for a real implementation
    tower.rotary_pos_emb = type(tower.rotary_pos_emb)(vision)
    return tower


def build(config: Any, attention: str) -> tuple[nn.Module, nn.Module]:
    """Return the tower, and its first block, which it no longer holds."""
    vision = image_config(config)
    vision.depth = 1
    tower = tower_of(vision, attention)
    block: nn.Module = tower.blocks[0]
    del tower.blocks
    return tower, block


def parts(tower: Any, block: nn.Module, vision: Vision, name: str, dtype: torch.dtype, hook: Hook) -> list[Part]:
    """Return what is traced, for the one grid."""
    count = vision.grid[0] * vision.grid[1]
    pixels = torch.zeros(count, vision.channels * vision.temporal_patch * vision.patch**2, dtype=dtype)
    hidden = torch.zeros(count, vision.hidden, dtype=dtype)
    angle = torch.zeros(count, vision.hidden // vision.heads, dtype=dtype)
    cos, sin = f"{name}_cos", f"{name}_sin"
    # Each a tensor of its own: the exporter would take one tensor in two places for one input.
    given = {"hidden": hidden, cos: angle, sin: angle.clone()}
    return [
        Part(
            VisionFront(tower, vision.grid, dtype), {"pixel_values": pixels, "position": hidden},
            ("hidden", cos, sin), {},
        ),
        Part(VisionBlock(block, hook, count), given, ("hidden",), {}),
        Part(VisionBack(tower), {"hidden": hidden}, ("features",), {}),
    ]  # fmt: skip


def ask(model: Any, vision: Vision, generator: torch.Generator) -> Answers:
    """Return what lies between the parts of the tower for a picture, and angles of the traced grid."""
    tower, grid = model.model.visual, small_grid(vision)
    width = vision.channels * vision.temporal_patch * vision.patch**2
    pixels = torch.randn(grid[0] * grid[1], width, generator=generator)
    # oneDNN's own code for a convolution would be megabytes of it
    with watched(tower.blocks[0]) as call, watched(tower.embeddings) as placed, mkldnn.flags(enabled=False):
        features = tower(pixels, torch.tensor([[1, *grid]])).pooler_output
    traced, asked = vision.grid[0] * vision.grid[1], grid[0] * grid[1]
    rows = torch.linspace(0, traced - 1, PATCHES).long()
    positions = get_vision_position_ids(torch.tensor([[1, *vision.grid]]), tower.spatial_merge_size)
    some_cos, some_sin = tower.rotary_pos_emb(pixels, positions[rows])
    sizes = [[traced, asked], [traced // vision.merge**2, asked // vision.merge**2]] if traced != asked else []
    return {
        "in.pixel_values": pixels, "in.position": placed.output - placed.input,
        "cos": call.cos, "sin": call.sin, "rows": rows, "some_cos": some_cos, "some_sin": some_sin,
        "hidden": call.input, "block": call.output, "features": features, "sizes": torch.tensor(sizes).reshape(-1, 2),
    }  # fmt: skip


def small_grid(vision: Vision) -> Grid:
    """Return the grid of the trace, or where that has many patches, more than heads, a small one."""
    if vision.grid[0] * vision.grid[1] <= max(MAX_PATCHES, vision.heads):
        return vision.grid
    return SMALL_GRID[0] * vision.merge, SMALL_GRID[1] * vision.merge
