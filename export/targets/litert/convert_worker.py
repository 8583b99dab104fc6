"""The converting worker: torch, the converter and what they keep of a module are gone when it ends."""

from __future__ import annotations

import gc
import hashlib
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

# edgeglm.export keeps it out of its processes, and litert-torch cannot be imported without.
if sys.modules["torchao"] is None:
    del sys.modules["torchao"]

import numpy as np
import torch
from numpy.typing import NDArray

from edgeglm.export.checkpoint.adapter import open_checkpoint
from edgeglm.export.checkpoint.reader import Checkpoint
from edgeglm.export.graph.position_embedding import position_embedding
from edgeglm.export.prove.values import relative_error, two_digits
from edgeglm.export.targets.litert.convert_task import Report, Span, Task
from edgeglm.export.targets.litert.converter import ENCODE, convert, quantize
from edgeglm.export.targets.litert.torch_modules import Builder
from edgeglm.roles import ENCODERS
from edgeglm.runtimes.engines.litert.engine import Encoder
from edgeglm.runtimes.engines.litert.file import File
from edgeglm.worker import serve

FLOAT = "float.tflite"


class Hashed:
    """A checkpoint that remembers the hash of each tensor that was read."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint, self.sha256 = checkpoint, dict[str, str]()
        self.find, self.read_bytes, self.decode = checkpoint.find, checkpoint.read_bytes, checkpoint.decode

    def rows(self, name: str, start: int = 0, stop: int | None = None) -> NDArray[np.float32]:
        """Return a whole tensor as fp32."""
        raw = self.read_bytes(name, start, stop)
        self.sha256[name] = hashlib.sha256(raw.data).hexdigest()
        return self.decode(name, raw)


class Conversion:
    """A module on its way from the checkpoint to its files."""

    def __init__(self, task: Task) -> None:
        self.task = task
        checkpoint = open_checkpoint(Path(task.checkpoint), Path(task.adapter) if task.adapter else None)
        self.source = Hashed(checkpoint)
        self.builder = Builder(checkpoint.config, task.grid, self.source)
        self.precision, self.errors = task.precision, dict[str, float]()

    def run(self, show: Callable[[float], None]) -> Report:
        """Write all files."""
        for index, (name, span) in enumerate(self.task.files.items(), 1):
            path = Path(name)
            path.parent.mkdir(parents=True, exist_ok=True)
            if self.task.precision == "fp32":
                self._convert(span, path)
            else:
                self._quantize(span, path)
            gc.collect()
            show(index / len(self.task.files))
        return Report(self.source.sha256, self.precision, self.errors)

    def _convert(self, span: Span, path: Path) -> None:
        builder, task = self.builder, self.task
        if ENCODERS.get(task.module):
            convert(builder.vision(span, self._position()), {ENCODE: builder.vision_inputs(span)}, path)
            return
        lengths = {f"prefill_{task.chunk}": task.chunk, "decode": 1}
        inputs = {name: builder.decoder_inputs(span, length, task.context) for name, length in lengths.items()}
        convert(builder.decoder(span), inputs, path)

    def _quantize(self, span: Span, path: Path) -> None:
        exact = path.with_name(FLOAT)
        try:
            self._convert(span, exact)
            if self.task.pictures:
                self._choose(exact, path, np.load(self.task.pictures))
            else:
                quantize(exact, self.task.precision, path)
        finally:
            exact.unlink(missing_ok=True)

    def _choose(self, exact: Path, path: Path, pictures: NDArray[np.float32]) -> None:
        """Try what the precision can mean, and keep what computes the nearest to fp32."""
        want = _features(exact, pictures)
        for name in self.task.tried:
            quantize(exact, name, path.with_name(name), {"pixel_values": list(pictures)})
            got = _features(path.with_name(name), pictures)
            self.errors[name] = two_digits(relative_error(got, want))
        self.precision = min(self.task.tried, key=self.errors.__getitem__)
        path.with_name(self.precision).rename(path)
        for name in self.task.tried:
            path.with_name(name).unlink(missing_ok=True)

    def _position(self) -> torch.Tensor:
        vision = self.builder.model.vision
        assert vision is not None
        table = self.source.rows(f"{vision.prefix}embeddings.position_embedding.weight")
        return torch.from_numpy(position_embedding(table, vision.grid, vision.merge))


def _features(path: Path, pictures: NDArray[np.float32]) -> NDArray[np.float32]:
    encoder = Encoder([File(path, 1, None)])
    try:
        return np.stack([encoder.run({"pixel_values": picture})["features"] for picture in pictures])
    finally:
        encoder.close()


def main() -> int:
    """Write the files of a task."""
    warnings.simplefilter("ignore")
    return serve(Task, lambda task, show: Conversion(task).run(show))
