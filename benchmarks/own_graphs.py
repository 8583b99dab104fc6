"""Graphs as users bring them, with samples: layers of the kinds that quantization ruins, small and untrained."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

SAMPLES = 16


class Detector(nn.Module):
    """Boxes and scores in one concatenation, as YOLO's head."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 32, 3, 2, 1),
            nn.SiLU(),
            nn.Conv2d(32, 64, 3, 2, 1),
            nn.SiLU(),
            nn.Conv2d(64, 64, 3, 1, 1),
            nn.SiLU(),
        )
        self.boxes, self.scores = nn.Conv2d(64, 4, 1), nn.Conv2d(64, 16, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Compute the graph."""
        x = self.body(x)
        boxes, scores = torch.sigmoid(self.boxes(x)) * 320, torch.sigmoid(self.scores(x) * 4 - 4)
        return torch.cat([boxes.flatten(2), scores.flatten(2)], 1)


class Reader(nn.Module):
    """Depthwise convolutions with hard-swish, and letters by column."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(1, 32, 3, 2, 1), nn.Hardswish()]
        for _ in range(3):
            layers += [nn.Conv2d(32, 32, 3, 1, 1, groups=32), nn.Hardswish(), nn.Conv2d(32, 32, 1), nn.Hardswish()]
        self.body, self.head = nn.Sequential(*layers), nn.Linear(32, 96)

    def forward(self, x: Tensor) -> Tensor:
        """Compute the graph."""
        return torch.softmax(self.head(self.body(x).mean(2).transpose(1, 2)) * 8, -1)


class Voice(nn.Module):
    """An LSTM and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.LSTM(64, 128), nn.Linear(128, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Compute the graph."""
        return torch.sigmoid(self.head(self.layer(x)[0]))


class Lengths(nn.Module):
    """A GRU over sequences of given lengths."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.GRU(64, 128, bidirectional=True), nn.Linear(256, 8)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """Compute the graph."""
        packed = nn.utils.rnn.pack_padded_sequence(x, lengths, enforce_sorted=False)
        result: Tensor = self.head(nn.utils.rnn.pad_packed_sequence(self.layer(packed)[0])[0])
        return result


class Conformer(nn.Module):
    """Attention, a depthwise convolution over time, and two linear layers, each behind a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(96) for _ in range(3))
        self.project, self.out = nn.Linear(96, 288), nn.Linear(96, 96)
        self.wide, self.depth, self.narrow = (
            nn.Conv1d(96, 192, 1),
            nn.Conv1d(96, 96, 15, padding=7, groups=96),
            nn.Conv1d(96, 96, 1),
        )
        self.feed = nn.Sequential(nn.Linear(96, 384), nn.SiLU(), nn.Linear(384, 96))

    def forward(self, x: Tensor) -> Tensor:
        """Compute the graph."""
        q, k, v = self.project(self.norms[0](x)).chunk(3, -1)
        x = x + self.out(torch.softmax(q @ k.transpose(1, 2) / 96**0.5, -1) @ v)
        gated = nn.functional.glu(self.wide(self.norms[1](x).transpose(1, 2)), 1)
        x = x + self.narrow(nn.functional.silu(self.depth(gated))).transpose(1, 2)
        result: Tensor = x + self.feed(self.norms[2](x))
        return result


class Bert(nn.Module):
    """A table and two layers, whose mean is the sentence's embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.places = nn.Embedding(1000, 96), nn.Parameter(torch.randn(1, 32, 96) * 0.1)
        self.layers = nn.Sequential(Conformer(), nn.LayerNorm(96), Conformer())

    def forward(self, x: Tensor) -> Tensor:
        """Compute the graph."""
        return nn.functional.normalize(self.layers(self.table(x) + self.places).mean(1), dim=-1)


class Mel(nn.Module):
    """Power of windows, mel bands and their logarithm, and a linear layer."""

    waves: Tensor
    bands: Tensor

    def __init__(self) -> None:
        super().__init__()
        angle = torch.arange(400)[:, None] * torch.arange(128)[None] * (2 * np.pi / 400)
        window = torch.hann_window(400)[:, None]
        self.register_buffer("waves", torch.cat([torch.cos(angle), torch.sin(angle)], 1) * window)
        self.register_buffer("bands", torch.rand(128, 40) ** 8)
        self.head = nn.Linear(40, 16)

    def forward(self, x: Tensor) -> Tensor:
        """Compute the graph."""
        real, imaginary = (x @ self.waves).chunk(2, -1)
        result: Tensor = self.head(torch.log((real**2 + imaginary**2) @ self.bands + 1e-5))
        return result


Make = Callable[[], tuple[Tensor, ...]]
GRAPHS: dict[str, tuple[type[nn.Module], Make]] = {
    "detector": (Detector, lambda: (torch.rand(1, 3, 96, 96),)),
    "reader": (Reader, lambda: (torch.rand(1, 1, 32, 128),)),
    "lstm": (Voice, lambda: (torch.randn(20, 1, 64),)),
    "gru-lengths": (Lengths, lambda: (torch.randn(20, 2, 64), torch.tensor([20, 13]))),
    "conformer": (Conformer, lambda: (torch.randn(1, 48, 96),)),
    "bert": (Bert, lambda: (torch.randint(0, 1000, (1, 32)),)),
    "mel": (Mel, lambda: (torch.randn(1, 50, 400) * 0.1,)),
}


def write_graphs(folder: Path) -> list[Path]:
    """Write NAME.onnx and the samples NAME/*.npz of each graph; returns the files."""
    files = []
    for name, (kind, make) in GRAPHS.items():
        torch.manual_seed(0)
        module, samples = kind().eval(), [make() for _ in range(SAMPLES)]
        names = ["x", "lengths"][: len(samples[0])]
        file = folder / f"{name}.onnx"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the exporter is deprecated, and says so
            torch.onnx.export(
                module, samples[0], file, input_names=names, output_names=["y"], opset_version=17, dynamo=False
            )
        (folder / name).mkdir()
        for index, sample in enumerate(samples):
            arrays = {key: array.numpy() for key, array in zip(names, sample, strict=True)}
            np.savez(folder / name / f"{index:04}.npz", **arrays)  # type: ignore[arg-type]
        files.append(file)
    return files
