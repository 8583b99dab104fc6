"""The original's vision tower: transformers' own, whose blocks are one that is filled again for each layer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import deepcopy

import torch
from torch import Tensor, nn

from edgeglm.export.evaluate.original.decoder import fill, parts_of
from edgeglm.export.families.registry import image_config
from edgeglm.export.model import Original


class StreamedTower:
    """The vision tower of a checkpoint, in fp32.

    Args:
        source: The checkpoint.
    """

    def __init__(self, source: Original) -> None:
        config, family, modeling = parts_of(source.config)
        described = family.describe(config, (1, 1)).vision
        assert described is not None
        vision = image_config(config)
        vision._attn_implementation = "sdpa"
        one = deepcopy(vision)
        one.depth = 1
        with torch.device("meta"):
            tower = modeling.Glm4vVisionModel(one)
        rotary = type(tower.rotary_pos_emb)(vision)  # has a buffer that no checkpoint holds
        self.tower = tower.to(torch.float32).to_empty(device="cpu").eval()
        self.tower.rotary_pos_emb = rotary
        block = self.tower.blocks[0]
        self.tower.blocks = nn.ModuleList()
        with torch.inference_mode():
            fill(source, self.tower, described.prefix)
        self.tower.blocks = _OneByOne(
            block, vision.depth, lambda layer: fill(source, block, described.blocks.format(layer=layer))
        )

    @torch.inference_mode()
    def features(self, pixels: Tensor, grid: Tensor) -> Tensor:
        """Return the features (merged patches, hidden) of a picture from its patches and their grid (1, 3)."""
        features: Tensor = self.tower(pixels, grid_thw=grid).pooler_output
        return features


class _OneByOne(nn.Module):
    """A block in place of all, which holds the weights of each in its turn."""

    def __init__(self, block: nn.Module, depth: int, load: Callable[[int], None]) -> None:
        super().__init__()
        self.block, self.depth, self.load = block, depth, load

    def __iter__(self) -> Iterator[nn.Module]:
        for layer in range(self.depth):
            self.load(layer)
            yield self.block
