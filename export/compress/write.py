"""Write a checkpoint: weights as one safetensors file, a piece of one tensor in memory, and the small files beside."""

from __future__ import annotations

import json
import os
import shutil
import struct
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from edgeglm.export.checkpoint.lineage import LINEAGE, Lineage
from edgeglm.export.checkpoint.locate import INDEX, SINGLE
from edgeglm.export.checkpoint.reader import Checkpoint
from edgeglm.export.compress.cuts import Cut
from edgeglm.export.write.disk import reserve, sync, write_all

# Files beside the weights that a copy needs: tokenizer, chat template, processor, generation.
COPIED = (".json", ".jinja", ".txt", ".model")
NOT_COPIED = {"config.json", INDEX, LINEAGE}


def write_weights(file: Path, cuts: Sequence[Cut], checkpoint: Checkpoint, show: Callable[[float], None]) -> None:
    """Write tensors as a safetensors file. Raises OSError.

    Args:
        file: A new one.
        cuts: The tensors.
        checkpoint: The original.
        show: Is told which share is written.
    """
    header = _header(cuts)
    total = len(header) + sum(cut.nbytes for cut in cuts)
    with open(file, "wb", buffering=0) as output:
        reserve(output.fileno(), total)
        write_all(output.fileno(), header)
        done = len(header)
        for cut in cuts:
            for piece in cut.pieces(checkpoint):
                write_all(output.fileno(), piece.data)
                done += len(piece)
            show(done / total)
        os.fsync(output.fileno())


def _header(cuts: Sequence[Cut]) -> bytes:
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for cut in cuts:
        end = offset + cut.nbytes
        entries[cut.name] = {"dtype": cut.dtype, "shape": list(cut.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # data begin at a multiple of eight, as the safetensors library writes it
    return struct.pack("<Q", len(text)) + text


def write_checkpoint(
    folder: Path,
    cuts: Sequence[Cut],
    checkpoint: Checkpoint,
    config: Mapping[str, Any],
    lineage: Lineage,
    show: Callable[[float], None],
) -> None:
    """Write a whole checkpoint into a new folder; the lineage comes last. Raises OSError.

    Args:
        folder: It.
        cuts: The tensors.
        checkpoint: The original, whose small files are copied.
        config: The new config.
        lineage: The new lineage.
        show: Is told which share is written.
    """
    folder.mkdir()
    write_weights(folder / SINGLE, cuts, checkpoint, show)
    copy_small_files(checkpoint.folder, folder)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    (folder / LINEAGE).write_bytes(msgspec.json.format(msgspec.json.encode(lineage)) + b"\n")
    sync(folder)


def copy_small_files(folder: Path, target: Path) -> None:
    """Copy what lies beside the weights and is not about them. Raises OSError."""
    for file in sorted(folder.iterdir()):
        if file.is_file() and file.suffix in COPIED and not file.name.startswith(".") and file.name not in NOT_COPIED:
            shutil.copyfile(file, target / file.name)
