"""LoRA adapters of peft, merged into a checkpoint's weights by rows: ``W + scale * B @ A``, as `merge_and_unload` does.

The product is computed in fp64 and rounded once, so that it does not depend on the machine or on how rows are cut.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeglm.digest import hash_range
from edgeglm.errors import DamagedFileError, UnsupportedError, UsageError
from edgeglm.export.checkpoint.files import AGAIN, opened, read_json, shown
from edgeglm.export.checkpoint.header import ITEM_BYTES, read_header
from edgeglm.export.checkpoint.reader import Checkpoint
from edgeglm.export.checkpoint.tensor import FLOATS, Tensor, Weight, to_float32
from edgeglm.export.families.configs import normalize

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
# What an adapter adds to a module's weight: A and B of a linear layer, and of a table, whose product is transposed.
PARTS = ("lora_A.weight", "lora_B.weight"), ("lora_embedding_A", "lora_embedding_B")
# Settings that change what is computed, or the base's own weights, in a way that is not read.
REFUSED = (
    "use_dora", "lora_bias", "layer_replication", "trainable_token_indices", "target_parameters",
    "alora_invocation_tokens", "use_qalora", "use_bdlora", "arrow_config", "monteclora_config", "velora_config",
)  # fmt: skip
# Ways to begin a training that leave the base as it is; the others put a part of it into the adapter.
BEGINNINGS = (True, False, None, "gaussian", "eva", "orthogonal")
MODULE = re.compile(r"\^?[\w.]{1,512}")
# Rows that are computed at once.
ROWS = 64
MERGE = "merge it with peft, and export the result"


@dataclass(frozen=True)
class Merged:
    """A weight with its share of an adapter: `left` (rows, rank) times `right` (rank, columns), times a scale.

    With `transposed` both are stored the other way round, as those of a table are.
    """

    base: Weight
    left: Tensor
    right: Tensor
    scale: float
    transposed: bool = False

    def __post_init__(self) -> None:
        """Raises DamagedFileError where the three do not fit."""
        shapes = [tensor.shape[::-1] if self.transposed else tensor.shape for tensor in (self.left, self.right)]
        if [(*self.shape[:1], self.rank), (self.rank, *self.shape[1:])] != shapes or len(self.shape) != 2:
            found = f"{list(self.left.shape)} and {list(self.right.shape)}"
            why = f"does not fit the base's weight of shape {list(self.shape)}: the adapter has {found}"
            raise DamagedFileError(f"{self.left.file}: {self.left.name}", why, "give the model that it was trained on")

    @property
    def rank(self) -> int:
        """The rank of the product."""
        return self.right.shape[-1 if self.transposed else 0] if self.right.shape else 0

    @property
    def name(self) -> str:
        """The base's."""
        return self.base.name

    @property
    def file(self) -> Path:
        """The file of the base's weight."""
        return self.base.file

    @property
    def files(self) -> tuple[Path, ...]:
        """The files of the base and of the adapter."""
        return *self.base.files, self.left.file

    @property
    def dtype(self) -> str:
        """The stored dtypes of base and adapter."""
        return f"{self.base.dtype} + {self.left.dtype} of rank {self.rank}"

    @property
    def shape(self) -> tuple[int, ...]:
        """The base's."""
        return self.base.shape

    @property
    def nbytes(self) -> int:
        """The stored bytes of the base and both factors."""
        return self.base.nbytes + self.left.nbytes + self.right.nbytes

    @property
    def row_bytes(self) -> int:
        """The bytes of a row that `read` returns."""
        return self.base.row_bytes + self.rank * ITEM_BYTES[self.left.dtype]

    @property
    def decoding_bytes(self) -> int:
        """The memory of the right factor, stored and in fp64, and of the rows that are computed at once."""
        return self.base.decoding_bytes + 3 * self.right.nbytes + 8 * (self.rank + 2 * ROWS) * self.shape[1]

    def read(self, start: int, stop: int, *, keep_pages: bool = False) -> NDArray[np.uint8]:
        """Return each row of the base as it is stored, and behind it that of the left factor."""
        base = self.base.read(start, stop, keep_pages=keep_pages).reshape(stop - start, self.base.row_bytes)
        item = ITEM_BYTES[self.left.dtype]
        if self.transposed:
            columns = self.left.columns(start, stop, keep_pages=keep_pages).reshape(self.rank, stop - start, item)
            left = columns.transpose(1, 0, 2).reshape(stop - start, self.rank * item)
        else:
            left = self.left.read(start, stop, keep_pages=keep_pages).reshape(stop - start, self.rank * item)
        return np.concatenate([base, left], axis=1).reshape(-1)

    def decode(self, stored: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return the whole rows that `read` gave, merged, as fp32: (rows, columns), in C order."""
        records = stored.reshape(-1, self.row_bytes)
        right = self.right.decode(self.right.read(0, self.right.shape[0], keep_pages=True)).astype(np.float64)
        right = right.T if self.transposed else right
        values = self.base.decode(np.ascontiguousarray(records[:, : self.base.row_bytes]).reshape(-1))
        for start in range(0, len(records), ROWS):
            raw = np.ascontiguousarray(records[start : start + ROWS, self.base.row_bytes :]).reshape(-1)
            left = to_float32(raw, self.left.dtype).reshape(-1, self.rank)
            values[start : start + ROWS] += ((left.astype(np.float64) @ right) * self.scale).astype(np.float32)
        return values


def open_checkpoint(folder: Path, adapter: Path | None = None, *, headers_only: bool = False) -> Checkpoint:
    """Return a checkpoint, with an adapter merged into its weights.

    Raises:
        UsageError, UnsupportedError, DamagedFileError: As `Checkpoint.open`, and of the adapter: it is none, of another
            kind, or of another model.
    """
    checkpoint = Checkpoint.open(folder, headers_only=headers_only)
    return checkpoint if adapter is None else _adapted(checkpoint, adapter)


def _adapted(checkpoint: Checkpoint, folder: Path) -> Checkpoint:
    if not (folder / CONFIG).is_file():
        raise UsageError(folder, f"holds no {CONFIG}", "give the folder of a LoRA adapter that peft saved")
    config = read_json(folder / CONFIG)
    _check(folder / CONFIG, config)
    parts, tensors = _read_parts(folder), dict(checkpoint.tensors)
    for name, tensor in parts.items():
        if not any(name.endswith(end) for pair in PARTS for end in pair):
            _replace(checkpoint, tensors, tensor)
    for pair in PARTS:
        for module in _modules(parts, pair):
            target = f"{module.removeprefix(PREFIX)}weight"
            a, b = (_part(parts, folder / WEIGHTS, module, end) for end in pair)
            scale = _scale(folder / CONFIG, config, target.removesuffix(".weight"), a, b)
            base, is_table = _base(tensors, target, checkpoint, folder / WEIGHTS), pair == PARTS[1]
            # Of a table, A has a column for each row of it.
            tensors[target] = Merged(base, a, b, scale, transposed=True) if is_table else Merged(base, b, a, scale)
    return replace(
        checkpoint,
        tensors=tensors,
        config=normalize(checkpoint.config, tensors),
        notes=(*checkpoint.notes, *_notes(checkpoint, folder)),
        adapter_sha256=_sha256(folder),
    )


def _read_parts(folder: Path) -> dict[str, Tensor]:
    """Read the tensors of an adapter. Raises UnsupportedError if they are pickled or not plain numbers."""
    file, pickle = folder / WEIGHTS, folder / "adapter_model.bin"
    if not os.path.lexists(file) and pickle.is_file():
        why = "is a pickle, which can run code when it is read"
        raise UnsupportedError(pickle, why, "save the adapter again with a newer peft")
    entries = read_header(file, headers_only=False)
    if not entries:
        raise DamagedFileError(file, "holds no weights", AGAIN)
    for entry in entries:
        if entry.dtype not in FLOATS:
            why = f"is stored as {entry.dtype}"
            raise UnsupportedError(f"{file}: {shown(entry.name)}", why, f"use an adapter in {', '.join(FLOATS)}")
    return {entry.name: Tensor.of(entry) for entry in entries}


def _modules(parts: Mapping[str, Tensor], pair: tuple[str, str]) -> list[str]:
    """Return the modules that have one of a pair of parts or both, up to the last dot of their names."""
    return sorted({name.removesuffix(end) for name in parts for end in pair if name.endswith(end)})


def _part(parts: Mapping[str, Tensor], file: Path, module: str, end: str) -> Tensor:
    if module + end not in parts:
        raise DamagedFileError(f"{file}: {shown(module + end)}", "is missing, and the other half is there", AGAIN)
    return parts[module + end]


def _replace(checkpoint: Checkpoint, tensors: dict[str, Weight], tensor: Tensor) -> None:
    """Put a whole weight in the place of the base's: one of modules_to_save, a bias, or a table that is trained."""
    target = tensor.name.removeprefix(PREFIX).replace(".base_layer.", ".")
    base = _base(tensors, target, checkpoint, tensor.file)
    if base.shape != tensor.shape:
        why = f"has shape {list(tensor.shape)} where the base has {list(base.shape)}"
        raise DamagedFileError(f"{tensor.file}: {shown(tensor.name)}", why, "give the model that it was trained on")
    tensors[target] = replace(tensor, name=target)


def _check(file: Path, config: Mapping[str, Any]) -> None:
    """Raises UnsupportedError for what changes more than a weight by a product of two matrices."""
    kind = config.get("peft_type")
    if kind != "LORA":
        why = f"is of an adapter by {shown(str(kind))}, and edgeglm merges LORA"
        raise UnsupportedError(file, why, MERGE)
    for key in REFUSED:
        if config.get(key):
            raise UnsupportedError(file, f"sets {key}, which edgeglm does not merge", MERGE)
    if config.get("init_lora_weights") not in BEGINNINGS:
        why = f"began as {shown(str(config['init_lora_weights']))}, which changes the base's weights too"
        raise UnsupportedError(file, why, MERGE)


def _scale(file: Path, config: Mapping[str, Any], module: str, a: Tensor, b: Tensor) -> float:
    """Return what the product is multiplied by: alpha over the rank, or over its root."""
    rank, patterns = a.shape[0] if a.shape else 0, config.get("alpha_pattern") or {}
    said = _number(file, "r", config.get("r"))
    if rank < 1 or (rank != said and not config.get("rank_pattern")):
        why = f"has rank {rank} where {CONFIG} says {said:g}"
        raise DamagedFileError(f"{a.file}: {shown(a.name)}", why, "take both files of one adapter")
    if not isinstance(patterns, Mapping):
        raise DamagedFileError(file, "its alpha_pattern is no object", AGAIN)
    alpha = _number(file, "lora_alpha", config.get("lora_alpha"))
    for pattern, value in patterns.items():
        if not MODULE.fullmatch(pattern):
            raise UnsupportedError(file, f"its alpha_pattern {shown(pattern)} is no module's name", MERGE)
        exact = module == pattern or module.endswith(f".{pattern}")
        if module.startswith(pattern[1:]) if pattern.startswith("^") else exact:
            alpha = _number(file, "alpha_pattern", value)
            break
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _number(file: Path, key: str, value: object) -> float:
    if type(value) not in (int, float) or not math.isfinite(float(value)):  # type: ignore[arg-type]
        raise DamagedFileError(file, f"has {shown(repr(value))} as {key}", AGAIN)
    return float(value)  # type: ignore[arg-type]


def _base(tensors: Mapping[str, Weight], name: str, checkpoint: Checkpoint, file: Path) -> Weight:
    if name not in tensors:
        why = f"changes {shown(name)}, which {checkpoint.folder} does not have"
        raise UsageError(file, why, "give the model that the adapter was trained on")
    return tensors[name]


def _notes(checkpoint: Checkpoint, folder: Path) -> list[str]:
    """Return the files of the adapter that are not used, and differ from the base's."""
    notes = []
    for name in ("tokenizer.json", "chat_template.jinja"):
        own, base = folder / name, checkpoint.folder / name
        if own.is_file() and (not base.is_file() or _digest(own) != _digest(base)):
            notes.append(f"the adapter's own {name} differs from the model's, and is not used")
    return notes


def _sha256(folder: Path) -> str:
    return hashlib.sha256(" ".join(_digest(folder / name) for name in (CONFIG, WEIGHTS)).encode()).hexdigest()


def _digest(file: Path) -> str:
    digest = hashlib.sha256()
    with opened(file) as fd:
        hash_range(digest, fd, 0, os.fstat(fd).st_size)
    return digest.hexdigest()
