"""LoRA adapters of peft, merged into a checkpoint's weights by rows: ``W + scale * B @ A``, as `merge_and_unload` does.

The product is computed in fp64 and rounded once, so that it does not depend on the machine or on how rows are cut.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgeglm.digest import hash_range
from edgeglm.errors import DamagedFileError, UnsupportedError, UsageError
from edgeglm.export.checkpoint.adapter_settings import CONFIG, MERGE, AdapterSettings
from edgeglm.export.checkpoint.files import AGAIN, opened, shown
from edgeglm.export.checkpoint.header import ITEM_BYTES, read_header
from edgeglm.export.checkpoint.reader import Checkpoint
from edgeglm.export.checkpoint.tensor import FLOATS, Tensor, Weight, to_float32
from edgeglm.export.families.configs import HEAD, normalize

WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."
# What an adapter adds to a module's weight: A and B of a linear layer, and of a table, whose product is transposed.
PARTS = ("lora_A.weight", "lora_B.weight"), ("lora_embedding_A", "lora_embedding_B")
TABLE = "embed_tokens.weight"
# Rows that are computed at once.
ROWS = 64
TRAINED = "give the model that the adapter was trained on"


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
        """Raise DamagedFileError where the three do not fit."""
        shapes = [tensor.shape[::-1] if self.transposed else tensor.shape for tensor in (self.left, self.right)]
        if [(*self.shape[:1], self.rank), (self.rank, *self.shape[1:])] != shapes or len(self.shape) != 2:
            found = f"{list(self.left.shape)} and {list(self.right.shape)}"
            why = f"does not fit the base's weight of shape {list(self.shape)}: the adapter has {found}"
            raise DamagedFileError(f"{self.left.file}: {self.left.name}", why, TRAINED)

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
            with np.errstate(all="ignore"):  # what is not finite is said where the weight is encoded
                values[start : start + ROWS] += ((left.astype(np.float64) @ right) * self.scale).astype(np.float32)
        return values


def open_checkpoint(folder: Path, adapter: Path | None = None, *, headers_only: bool = False) -> Checkpoint:
    """Return a checkpoint, with an adapter merged into its weights.

    Args:
        folder: Of the checkpoint.
        adapter: A folder of peft's, if there is one.
        headers_only: Whether no weight will be read.

    Raises:
        UsageError, UnsupportedError, DamagedFileError: As `Checkpoint.open`, and of the adapter: it is none, of another
            kind, or of another model.
    """
    checkpoint = Checkpoint.open(folder, headers_only=headers_only)
    return checkpoint if adapter is None else _adapted(checkpoint, adapter)


def _adapted(checkpoint: Checkpoint, folder: Path) -> Checkpoint:
    if not (folder / CONFIG).is_file():
        raise UsageError(folder, f"holds no {CONFIG}", "give the folder of a LoRA adapter that peft saved")
    settings, file = AdapterSettings(folder), folder / WEIGHTS
    parts, tensors = _read_parts(folder), dict(checkpoint.tensors)
    own = [tensor for name, tensor in parts.items() if not any(name.endswith(end) for pair in PARTS for end in pair)]
    tied = _is_tied(checkpoint)
    if tied:
        _check_tied(settings.file, [f"{module.removeprefix(PREFIX)}weight" for module in _modules(parts)])
        _untie(settings, tensors, own)
    replaced = {_replace(checkpoint, tensors, tensor) for tensor in own}
    settings.check_saved(file, {*tensors, HEAD} if tied else tensors, replaced)
    adapted = []
    for pair in PARTS:
        for module in _modules(parts, pair):
            target = f"{module.removeprefix(PREFIX)}weight"
            adapted.append(target.removesuffix(".weight"))
            a, b = (_part(parts, file, module, end) for end in pair)
            base = _base(tensors, target, checkpoint, file)
            settings.check_target(file, adapted[-1], a.shape[0] if a.shape else 0)
            scale = settings.scale(adapted[-1])
            # Of a table, A has a column for each row of it.
            tensors[target] = (
                Merged(base, a, b, scale, transposed=True) if pair == PARTS[1] else Merged(base, b, a, scale)
            )
    notes = (*checkpoint.notes, *settings.notes(checkpoint.tensors, adapted, replaced), *_notes(checkpoint, folder))
    return replace(
        checkpoint,
        tensors=tensors,
        config=normalize(checkpoint.config, tensors),
        notes=notes,
        adapter_sha256=_sha256(folder),
    )


def _is_tied(checkpoint: Checkpoint) -> bool:
    """Return whether the head is the embedding's weight."""
    text = checkpoint.config.get("text_config")
    parts = checkpoint.config, text if isinstance(text, Mapping) else {}
    return HEAD not in checkpoint.tensors and any(part.get("tie_word_embeddings") for part in parts)


def _untie(settings: AdapterSettings, tensors: dict[str, Weight], own: Sequence[Tensor]) -> None:
    """Give the head a weight of its own where one of the two is saved, which unties them in peft."""
    names = {_target(tensor) for tensor in own}
    for name in [name for name in tensors if name.endswith(TABLE)]:
        is_saved = {part: part in names and settings.saves(part.removesuffix(".weight")) for part in (name, HEAD)}
        table = tensors[name]
        if any(is_saved.values()):
            if not isinstance(table, Tensor):
                why = f"trains {name}, which embedding and head share, of a quantized table"
                raise UnsupportedError(settings.file, why, MERGE)
            tensors[HEAD] = replace(table, name=HEAD)


def _check_tied(file: Path, targets: Sequence[str]) -> None:
    """Raise UnsupportedError where one half of what is tied is adapted: peft changes both, but only as it merges."""
    for target in targets:
        if target == HEAD or target.endswith(TABLE):
            why = f"adapts {shown(target)}, which embedding and head share, and a merge changes both"
            raise UnsupportedError(file, why, "untie them and merge with peft, and export the result")


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


def _modules(parts: Mapping[str, Tensor], *pairs: tuple[str, str]) -> list[str]:
    """Return the modules that have a part of a pair, or of any, up to the last dot of their names."""
    ends = [end for pair in pairs or PARTS for end in pair]
    return sorted({name.removesuffix(end) for name in parts for end in ends if name.endswith(end)})


def _part(parts: Mapping[str, Tensor], file: Path, module: str, end: str) -> Tensor:
    if module + end not in parts:
        raise DamagedFileError(f"{file}: {shown(module + end)}", "is missing, and the other half is there", AGAIN)
    return parts[module + end]


def _replace(checkpoint: Checkpoint, tensors: dict[str, Weight], tensor: Tensor) -> str:
    """Put a whole weight in the place of the base's: one of modules_to_save, a bias, or a table that is trained."""
    target = _target(tensor)
    if ".lora_" in target:
        why = "is no part of a LoRA adapter as peft saves it"
        raise DamagedFileError(f"{tensor.file}: {shown(tensor.name)}", why, "save it with peft's save_pretrained")
    base = _base(tensors, target, checkpoint, tensor.file)
    if base.shape != tensor.shape:
        why = f"has shape {list(tensor.shape)} where the base has {list(base.shape)}"
        raise DamagedFileError(f"{tensor.file}: {shown(tensor.name)}", why, TRAINED)
    tensors[target] = replace(tensor, name=target)
    return target


def _target(tensor: Tensor) -> str:
    """Return the name of what a whole weight of the adapter replaces."""
    return tensor.name.removeprefix(PREFIX).replace(".base_layer.", ".")


def _base(tensors: Mapping[str, Weight], name: str, checkpoint: Checkpoint, file: Path) -> Weight:
    if name not in tensors:
        why = f"changes {shown(name)}, which {checkpoint.folder} does not have"
        raise UsageError(file, why, TRAINED)
    if isinstance(tensors[name], Merged):
        raise DamagedFileError(file, f"changes {shown(name)} twice", AGAIN)
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
