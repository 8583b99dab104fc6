"""Batches of fresh screens: their pixels, and what stands where on them."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from edgeglm.export.demo.model import IMAGE_MEAN, IMAGE_STD, MERGE, PATCH
from edgeglm.export.demo.render import render
from edgeglm.export.demo.screens import CHINESE, HEIGHT, WIDTH, Box, Scene

ROWS, COLUMNS = HEIGHT // PATCH, WIDTH // PATCH  # of patches
CELL = PATCH * MERGE  # model pixels under one image token
CELL_ROWS, CELL_COLUMNS = ROWS // MERGE, COLUMNS // MERGE
IMAGE_TOKENS = CELL_ROWS * CELL_COLUMNS
CLASSES = {name: index for index, name in enumerate(CHINESE)}


@dataclass(frozen=True)
class Pictures:
    """B screens.

    pixels (B, HEIGHT, WIDTH, 3) uint8; of their E elements, cells (E, 3) int64: picture, image token, class, and
    inside (E, 3) float32: x and y in the cell, and whether a switch is on, in 0..1.
    """

    pixels: Tensor
    cells: Tensor
    inside: Tensor

    def to(self, device: torch.device) -> Pictures:
        """Return them on a device."""
        return Pictures(self.pixels.to(device), self.cells.to(device), self.inside.to(device))


def take_pictures(scenes: list[Scene], random: Random) -> Pictures:
    """Return the screens of scenes, each a little darker or brighter."""
    pixels = [to_pixels(render(scene)) * random.uniform(0.85, 1.1) for scene in scenes]
    cells, inside = [], []
    for picture, scene in enumerate(scenes):
        for element in scene.elements:
            x, y = element.centre
            column = min(CELL_COLUMNS - 1, max(0, int(x / CELL)))
            row = min(CELL_ROWS - 1, max(0, int(y / CELL)))
            cells.append((picture, row * CELL_COLUMNS + column, CLASSES[element.name]))
            inside.append((x / CELL - column, y / CELL - row, float(element.on)))
    return Pictures(
        torch.from_numpy(np.stack(pixels).clip(0, 255).astype(np.uint8)),
        # A few screens may hold nothing at all.
        torch.tensor(cells, dtype=torch.int64).reshape(-1, 3),
        torch.tensor(inside, dtype=torch.float32).reshape(-1, 3),
    )


def to_pixels(image: Image.Image) -> NDArray[np.uint8]:
    """Return the screenshot at the model's size, resized as the image processor does: (HEIGHT, WIDTH, 3) uint8."""
    return np.asarray(image.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC))


def to_patches(pixels: Tensor) -> Tensor:
    """Map (B, HEIGHT, WIDTH, 3) in 0..255 to normalized (B, ROWS * COLUMNS, 3 * PATCH * PATCH) in merge-block order."""
    mean, std = torch.tensor(IMAGE_MEAN), torch.tensor(IMAGE_STD)
    x = pixels.float().div(255).sub(mean).div(std)
    x = x.view(-1, CELL_ROWS, MERGE, PATCH, CELL_COLUMNS, MERGE, PATCH, 3)
    return x.permute(0, 1, 4, 2, 5, 7, 3, 6).reshape(-1, ROWS * COLUMNS, 3 * PATCH * PATCH)


def patch_of(box: Box | None) -> tuple[int, int]:
    """Return row and column of the patch in a box's middle; (ROWS, COLUMNS) of none."""
    if box is None:
        return ROWS, COLUMNS
    x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    return min(ROWS - 1, max(0, int(y / PATCH))), min(COLUMNS - 1, max(0, int(x / PATCH)))
