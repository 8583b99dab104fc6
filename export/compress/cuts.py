"""The tensors of a smaller checkpoint, each from one of the original: rows and columns that stay, or other values."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from edgeglm.export.checkpoint.header import ITEM_BYTES
from edgeglm.export.checkpoint.reader import Checkpoint
from edgeglm.export.checkpoint.tensor import Tensor
from edgeglm.export.compress.choose import Chosen
from edgeglm.export.compress.parts import Indices, Part, units_of
from edgeglm.export.compress.rates import Left

DTYPES: dict[str, Any] = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}
NAMES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
# Of rows in fp32 that are read at once.
CHUNK_BYTES = 16 << 20


@dataclass(frozen=True)
class Cut:
    """A tensor to write.

    Args:
        name: Its name.
        source: The name of the original's.
        dtype: How it is stored.
        shape: Its dimensions.
        rows: Those of the original that stay; None for all.
        columns: Those of the original that stay; None for all.
        values: A file of its values in fp32, in place of the original's.
    """

    name: str
    source: str
    dtype: str
    shape: tuple[int, ...]
    rows: Indices | None = None
    columns: Indices | None = None
    values: Path | None = None

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]

    def pieces(self, checkpoint: Checkpoint) -> Iterator[NDArray[np.uint8]]:
        """Yield the bytes, some rows at a time; numbers that stay as they are keep their bits."""
        tensor, width = checkpoint.find(self.source), max(1, math.prod(self.shape[1:]))
        count = self.shape[0] if self.shape else 1
        step = max(1, CHUNK_BYTES // (4 * max(width, math.prod(tensor.shape[1:]))))
        for start in range(0, count, step):
            stop = min(start + step, count)
            if self.values is not None:
                found = np.fromfile(self.values, np.float32, (stop - start) * width, offset=4 * start * width)
                yield _stored(found, self.dtype)
                continue
            rows = np.arange(start, stop) if self.rows is None else self.rows[start:stop]
            yield self._read(checkpoint, rows)

    def _read(self, checkpoint: Checkpoint, rows: Indices) -> NDArray[np.uint8]:
        tensor, first = checkpoint.find(self.source), int(rows[0])
        raw = checkpoint.read_bytes(self.source, first, int(rows[-1]) + 1) if len(rows) else np.empty(0, np.uint8)
        if not isinstance(tensor, Tensor) or tensor.dtype != self.dtype:
            numbers = checkpoint.decode(self.source, raw).reshape(-1, max(1, math.prod(tensor.shape[1:])))
            return _stored(self._chosen(numbers, rows - first), self.dtype)
        numbers = raw.view(DTYPES[self.dtype]).reshape(-1, max(1, math.prod(tensor.shape[1:])))
        return np.ascontiguousarray(self._chosen(numbers, rows - first)).reshape(-1).view(np.uint8)

    def _chosen(self, numbers: NDArray[Any], rows: Indices) -> NDArray[Any]:
        kept = numbers if len(rows) == len(numbers) else numbers[rows]
        return kept if self.columns is None else kept[:, self.columns]


def _stored(numbers: NDArray[np.float32], dtype: str) -> NDArray[np.uint8]:
    return np.ascontiguousarray(numbers.astype(DTYPES[dtype])).reshape(-1).view(np.uint8)


def cut_tensors(checkpoint: Checkpoint, plan: Mapping[Part, Left], chosen: Chosen) -> list[Cut]:
    """Return the tensors of the smaller checkpoint in the order of their names."""
    cuts = {
        name: replace(_whole(checkpoint, name), values=chosen.fitted.get(name)) for name in sorted(checkpoint.tensors)
    }
    for part in plan:
        for units in units_of(part):
            if units.reader not in chosen.units:
                continue
            kept = chosen.units[units.reader]
            columns, reader = units.columns(kept), cuts[units.reader]
            shape = (reader.shape[0], len(columns))
            cuts[units.reader] = replace(reader, shape=shape, columns=columns)
            for name, rows in units.rows(checkpoint, kept):
                cuts[name] = replace(cuts[name], shape=(rows.size, *cuts[name].shape[1:]), rows=rows.ravel())
    for part in plan:
        if part.module in chosen.layers:
            cuts = _renumbered(cuts, part, chosen.layers[part.module])
    return [cuts[name] for name in sorted(cuts)]


def _whole(checkpoint: Checkpoint, name: str) -> Cut:
    tensor = checkpoint.find(name)
    usual = NAMES.get(str(checkpoint.config.get("dtype") or checkpoint.config.get("torch_dtype")), "BF16")
    return Cut(name, name, tensor.dtype if isinstance(tensor, Tensor) else usual, tensor.shape)


def _renumbered(cuts: Mapping[str, Cut], part: Part, layers: list[int]) -> dict[str, Cut]:
    found = {}
    prefixes = {part.prefix(layer): layer for layer in range(part.layers)}
    for name, cut in cuts.items():
        prefix = next((prefix for prefix in prefixes if name.startswith(prefix)), None)
        if prefix is None:
            found[name] = cut
        elif prefixes[prefix] in layers:
            renamed = part.prefix(layers.index(prefixes[prefix])) + name.removeprefix(prefix)
            found[renamed] = replace(cut, name=renamed)
    return found


def cut_config(config: Mapping[str, Any], plan: Mapping[Part, Left]) -> dict[str, Any]:
    """Return the config of the smaller checkpoint: the same with smaller numbers."""
    found = dict(config)
    for part, left in plan.items():
        section = dict(found[part.section]) if part.section else found
        section[part.depth] = left.layers
        if part.depth != "num_hidden_layers" and "num_hidden_layers" in section:
            section["num_hidden_layers"] = left.layers
        if isinstance(kinds := section.get("layer_types"), list):
            section["layer_types"] = kinds[: left.layers]
        if part.width:
            section["intermediate_size"] = left.width
        if part.groups:
            section["head_dim"] = part.head_dim
            section["num_attention_heads"], section["num_key_value_heads"] = left.groups * part.heads, left.groups
        if part.section:
            found[part.section] = section
    return found
