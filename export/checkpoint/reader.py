"""A Hugging Face checkpoint on disk: its config, where each weight lies, and the weights' rows, one read at a time."""

from __future__ import annotations

import json
import math
import os
import re
import reprlib
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeglm.errors import DamagedFileError, UnsupportedError, UsageError
from edgeglm.export.checkpoint.files import AGAIN, MAX_JSON_BYTES, read_json, shown
from edgeglm.export.checkpoint.header import ITEM_BYTES, Entry, read_header
from edgeglm.export.checkpoint.quantized.formats import find_quantized
from edgeglm.export.checkpoint.recognize import check_config_kind, check_kind, check_shards, missing_weight
from edgeglm.export.checkpoint.tensor import FLOATS, Tensor, Weight
from edgeglm.export.families.configs import HEAD, embedding_in_head, normalize

SHARD_NAME = re.compile(r"[\w.+ -]{1,200}\.safetensors")
PICKLES = ("pytorch_model*.bin", "*.pt", "*.pth")
DIRECTORY = "give a directory with config.json and model.safetensors"


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose headers have been checked; its files are open only while they are read.

    ``config`` is its config.json in transformers 5's form (`edgeglm.export.families.configs.normalize`), without what
    it says of quantization.
    ``weights`` is ``model.safetensors`` or the index of its shards. ``foreign`` holds the dtypes of the tensors that
    edgeglm cannot read, which matter only when a model needs one of them. ``notes`` say what the user should know.
    ``adapter_sha256`` is the hash of the adapter that is merged into the weights, if one is.
    ``keep_pages`` leaves what is read in the page cache, for whoever reads it again soon.
    """

    folder: Path
    config: Mapping[str, Any]
    weights: Path
    tensors: Mapping[str, Weight]
    foreign: Mapping[str, str]
    notes: tuple[str, ...] = ()
    adapter_sha256: str | None = None
    keep_pages: bool = False

    @classmethod
    def open(cls, folder: Path, *, headers_only: bool = False) -> Checkpoint:
        """Read the config and check every header, without reading a weight.

        ``headers_only`` allows files that end after their header, which is all that a plan needs.

        Raises:
            UsageError: The folder is none, holds no config or no weights, or cannot be read.
            UnsupportedError: The weights are pickled, or quantized in a way that is not read.
            DamagedFileError: A file is truncated, malformed or missing, or contradicts another.
        """
        _check_folder(folder)
        check_kind(folder)
        config = _read_config(folder)
        weights, shards = _find_shards(folder, config)
        entries: dict[str, Entry] = {}
        room = MAX_JSON_BYTES  # of all headers
        for file, indexed in shards.items():
            found = {entry.name: entry for entry in read_header(file, headers_only=headers_only, limit=room)}
            room -= min((entry.begin for entry in found.values()), default=0)
            _check_shard(file, indexed, found, entries)
            entries |= found
        stored = {name: Tensor.of(entry) for name, entry in entries.items() if entry.dtype in ITEM_BYTES}
        unread = {name: entry for name, entry in entries.items() if name not in stored}
        quantized = find_quantized(folder / "config.json", config, stored, unread)
        # What lies beside a quantized matrix is a part of it, but for the bias.
        modules = {name.removesuffix("weight") for name in quantized.matrices}
        alone = [name for name in entries if name.rpartition(".")[0] + "." not in modules or name.endswith(".bias")]
        plain = {name: stored[name] for name in alone if entries[name].dtype in FLOATS}
        foreign = {name: entries[name].dtype for name in alone if name not in plain}
        tensors: dict[str, Weight] = {**plain, **quantized.matrices}
        if (embedding := embedding_in_head(config, tensors)) and (head := stored.get(HEAD)):
            tensors[embedding] = replace(head, name=embedding)
        config = normalize(config, [*tensors, *foreign])
        return cls(folder, config, weights, tensors, foreign, quantized.notes)

    @property
    def config_json(self) -> str:
        """The config as JSON, the same for the same settings in any order."""
        return json.dumps(self.config, sort_keys=True)

    @property
    def is_plain(self) -> bool:
        """Whether every weight is one tensor, as transformers reads it too without a package of its own."""
        return self.adapter_sha256 is None and all(isinstance(tensor, Tensor) for tensor in self.tensors.values())

    @property
    def total_bytes(self) -> int:
        """The size in the files of all tensors that edgeglm can read."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    @property
    def parameters(self) -> int:
        """The number of weights in them."""
        return sum(math.prod(tensor.shape) for tensor in self.tensors.values())

    @property
    def architecture(self) -> str:
        """The transformers class that the config names."""
        name = _architecture(self.config)
        if name is None:
            remedy = "take one that transformers' save_pretrained wrote"
            raise UnsupportedError(self.folder / "config.json", "names no architecture", remedy)
        return name

    def check_architecture(self, supported: Iterable[str]) -> str:
        """Return the architecture, which must be one of those supported.

        Raises:
            UnsupportedError: It is another one; the message names those supported.
        """
        name, choices = self.architecture, list(supported)
        if name not in choices:
            why = f"the architecture {shown(name)} is not supported"
            raise UnsupportedError(self.folder / "config.json", why, f"use one of {', '.join(choices)}")
        return name

    def sidecar(self, name: str) -> Path | None:
        """Return the path of a file beside the weights, such as ``tokenizer.json``, or None where there is none.

        A folder of that name and a link to nothing are there, so that whoever reads them refuses them.
        """
        path = self.folder / name
        return path if os.path.lexists(path) else None

    def rows(self, name: str, start: int = 0, stop: int | None = None) -> NDArray[np.float32]:
        """Return rows of a tensor as they are stored, exactly, in C order.

        Args:
            name: The tensor's; a scalar is one row.
            start: The first row, along the first axis.
            stop: The row behind the last one; None is the end.

        Raises:
            DamagedFileError: There is no such tensor, or its file has become shorter.
            UnsupportedError: It is stored in a dtype that edgeglm cannot read.
            IndexError: The tensor has no such rows.
        """
        tensor = self.find(name)
        values = tensor.decode(self.read_bytes(name, start, stop))
        return values.reshape(len(_span(tensor, start, stop)), *tensor.shape[1:])

    def decode(self, name: str, stored: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return the whole rows that `read_bytes` gave, as fp32: (rows, …), in C order."""
        return self.find(name).decode(stored)

    def read_bytes(self, name: str, start: int = 0, stop: int | None = None) -> NDArray[np.uint8]:
        """Read the bytes of rows as they are stored. Raises what `rows` raises."""
        tensor = self.find(name)
        span = _span(tensor, start, stop)
        return tensor.read(span.start, span.stop, keep_pages=self.keep_pages)

    def find(self, name: str) -> Weight:
        """Return the tensor of that name.

        Raises:
            DamagedFileError: There is none.
            UnsupportedError: It is stored in a dtype that edgeglm cannot read.
        """
        where = f"{self.weights}: {name}"
        if name in self.foreign:
            why = f"is stored as {self.foreign[name]}"
            raise UnsupportedError(where, why, f"use a checkpoint in {', '.join(FLOATS)}")
        if name not in self.tensors:
            raise missing_weight(self.weights, name, [*self.tensors, *self.foreign])
        return self.tensors[name]


def _span(tensor: Weight, start: int, stop: int | None) -> range:
    rows = tensor.shape[0] if tensor.shape else 1
    span = range(start, rows if stop is None else stop)
    if not 0 <= span.start <= span.stop <= rows:
        raise IndexError(f"{tensor.name} has {rows} rows, not {start} to {stop}")
    return span


def _architecture(config: Mapping[str, Any]) -> str | None:
    match config.get("architectures"):
        case [str(name), *_]:
            return name
    return None


def _check_folder(folder: Path) -> None:
    try:
        mode = folder.stat().st_mode
    except FileNotFoundError as error:
        raise UsageError(folder, "does not exist", DIRECTORY) from error
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise UsageError(folder, f"cannot be read: {why}", DIRECTORY) from error
    if not stat.S_ISDIR(mode):
        raise UsageError(folder, "is not a directory", DIRECTORY)
    if not os.access(folder, os.R_OK | os.X_OK):
        raise UsageError(folder, "cannot be read: this user may not list it", "make it readable")


def _read_config(folder: Path) -> dict[str, Any]:
    file = folder / "config.json"
    if not os.path.lexists(file):
        raise UsageError(folder, "holds no config.json", DIRECTORY)
    config = read_json(file)
    check_config_kind(file, config)
    return config


def _find_shards(folder: Path, config: Mapping[str, Any]) -> tuple[Path, dict[Path, set[str]]]:
    """Return what names the weights, and each file of weights with the names that the index gives it."""
    # One file goes before an index, as in transformers; lexists, so that a broken link is named as what is missing.
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if os.path.lexists(single):
        return single, {single: set()}
    if os.path.lexists(index):
        shards = _read_index(index)
        check_shards(index, shards)
        return index, shards
    for pickle in sorted(path for pattern in PICKLES for path in folder.glob(pattern)):
        model = _architecture(config) or "AutoModel"
        remedy = f"convert it with transformers: {shown(model)}.from_pretrained(DIR).save_pretrained(NEW_DIR)"
        raise UnsupportedError(pickle, "is a pickle, which can run code when it is read", remedy)
    raise UsageError(folder, f"holds neither {single.name} nor {index.name}", "download the whole checkpoint")


def _read_index(index: Path) -> dict[Path, set[str]]:
    mapping = read_json(index).get("weight_map")
    if not isinstance(mapping, dict) or not mapping:
        raise DamagedFileError(index, "has no weight_map", AGAIN)
    shards: dict[Path, set[str]] = {}
    for name, shard in mapping.items():
        if not isinstance(shard, str) or not SHARD_NAME.fullmatch(shard):
            why = f"lies in {reprlib.repr(shard)}, which is no safetensors file of that folder"
            raise DamagedFileError(f"{index}: {shown(name)}", why, AGAIN)
        shards.setdefault(index.parent / shard, set()).add(name)
    return dict(sorted(shards.items()))


def _check_shard(file: Path, indexed: set[str], found: Mapping[str, Entry], others: Mapping[str, Entry]) -> None:
    for name in sorted(indexed - found.keys()):
        why = "is not there, where the index has it"
        raise DamagedFileError(f"{file}: {shown(name)}", why, "download both files again")
    for name in sorted(found.keys() & others.keys()):
        raise DamagedFileError(f"{file}: {name}", f"is in {others[name].file.name} too", "download both files again")
