"""Graphs as users have them: a small CNN with a GELU, and LSTMs of one length and of many."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import torch
from torch import nn

IMAGE = (3, 16, 16)
LENGTH, FEATURES = 6, 5


class Cnn(nn.Module):
    """Patches, a GELU, a convolution over neighbours, a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.conv = nn.Conv2d(3, 16, 4, stride=4), nn.Conv2d(16, 16, 3, padding=1)
        self.norm, self.head = nn.BatchNorm2d(16), nn.Linear(16, 10)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = nn.functional.gelu(self.patch(image))
        x = torch.relu(self.norm(self.conv(x)))
        result: torch.Tensor = self.head(x.mean((2, 3)))
        return result


class Lstm(nn.Module):
    """A layer over a sequence (length, batch, features), and a linear layer on its last state."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(FEATURES, 8), nn.Linear(8, 4)

    def forward(self, sequence: torch.Tensor) -> torch.Tensor:
        _, (state, _) = self.lstm(sequence)
        result: torch.Tensor = self.head(state[-1])
        return result


def write_cnn(file: Path, *, dynamic: bool = False) -> Path:
    """``image`` (batch, 3, 16, 16) to ``scores`` (batch, 10)."""
    return _write(Cnn(), (1, *IMAGE), "image", "scores", file, {0: "batch"} if dynamic else None)


def write_lstm(file: Path, *, dynamic: bool = False) -> Path:
    """``sequence`` (length, 1, 5) to ``scores`` (1, 4)."""
    return _write(Lstm(), (LENGTH, 1, FEATURES), "sequence", "scores", file, {0: "length"} if dynamic else None)


def _write(
    module: nn.Module, shape: tuple[int, ...], name: str, output: str, file: Path, varies: dict[int, str] | None
) -> Path:
    torch.manual_seed(0)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter that such files are from is deprecated, and says so
        torch.onnx.export(
            module.eval(),
            (torch.zeros(shape),),
            file,
            input_names=[name],
            output_names=[output],
            dynamic_axes={name: varies} if varies else None,
            opset_version=17,
            dynamo=False,
        )
    return file


def write_samples(folder: Path, name: str, shape: tuple[int, ...], count: int = 4) -> Path:
    """A folder of samples of one input."""
    folder.mkdir(exist_ok=True)
    random = np.random.default_rng(0)
    for index in range(count):
        np.savez(folder / f"{index}.npz", **{name: random.standard_normal(shape, np.float32)})  # type: ignore[arg-type]
    return folder
