"""Lineage of a compressed checkpoint: the original that it was made from, and how."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from edgeglm.digest import KnownHashes
from edgeglm.errors import DamagedFileError, UsageError
from edgeglm.export.checkpoint.adapter import open_checkpoint
from edgeglm.export.checkpoint.files import AGAIN, read_json
from edgeglm.export.checkpoint.locate import DEMO, locate
from edgeglm.export.checkpoint.reader import Checkpoint
from edgeglm.manifest import SPARSE

LINEAGE = "edgeglm-lineage.json"
VERSION = 1
# The options of a bundle's manifest that name the original.
ORIGINAL, ORIGINAL_SHA256 = "original", "original_sha256"
# What a step keeps of a pattern of zeros.
ZEROS = "zeros"


class Step(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A run of ``edgeglm compress``.

    Args:
        command: Its options.
        calibration_sha256: Of the samples; None where none were read.
        kept: By module, what is left of its layers, and by layer of its channels and groups of heads: their numbers;
            or how many weights its blocks have, and zeros.
    """

    command: dict[str, Any]
    calibration_sha256: str | None = None
    kept: dict[str, dict[str, Any]]


class Lineage(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The original of a compressed checkpoint, and the steps from there.

    Args:
        original: Its name, as `locate` gives it.
        place: Its folder, or org/name on the hub; None for the demo.
        sha256: Hash of its config and weights, as `weights_key` gives it.
        steps: In their order.
        version: Of this form.
    """

    original: str
    place: str | None
    sha256: str
    steps: tuple[Step, ...]
    version: int = VERSION


def read_lineage(folder: Path) -> Lineage | None:
    """Return the lineage of a checkpoint, or None of one that nobody compressed. Raises DamagedFileError."""
    file = folder / LINEAGE
    if not file.is_file():
        return None
    try:
        lineage = msgspec.convert(read_json(file), Lineage)
    except msgspec.ValidationError as error:
        raise DamagedFileError(file, f"is no lineage: {error}", AGAIN) from error
    if lineage.version != VERSION:
        raise DamagedFileError(file, f"has version {lineage.version}", "take a newer edgeglm")
    return lineage


def sparsity_of(lineage: Lineage | None) -> str | None:
    """Return the pattern of zeros of a sparse checkpoint: ``2:4`` or a share."""
    return next((step.command[SPARSE] for step in lineage.steps if SPARSE in step.command), None) if lineage else None


def find_original(folder: Path, remedy: str = "give the original by --reference") -> Path:
    """Return the folder that a checkpoint was compressed from, or the folder itself.

    Args:
        folder: Of the checkpoint.
        remedy: What to do where the original is gone.

    Raises:
        UsageError: The original is not where it was.
    """
    lineage = read_lineage(folder)
    if lineage is None:
        return folder
    if lineage.place is None:
        return DEMO
    original = locate(lineage.place)[0]
    if not original.is_dir():
        why = f"was compressed from {lineage.place}, which is not there"
        raise UsageError(folder, why, remedy)
    return original


def check_original(folder: Path, wanted: object) -> None:
    """Check that a folder holds the original that a bundle's manifest names; `wanted` is None where it names none.

    Raises:
        UsageError: It holds another checkpoint.
    """
    if wanted and weights_key(open_checkpoint(folder)) != wanted:
        why = "is not the checkpoint that the bundle's model was compressed from"
        raise UsageError(f"--reference {folder}", why, "give that one")


def weights_key(checkpoint: Checkpoint) -> str:
    """Hash a checkpoint's config and its files of weights; hashes of large files that did not change are known.

    Raises:
        UsageError: A file cannot be read.
    """
    known, digest = KnownHashes(checkpoint.folder), hashlib.sha256()
    files = {file for tensor in checkpoint.tensors.values() for file in tensor.files}
    for file in sorted({checkpoint.folder / "config.json", *files}):
        try:
            digest.update(f"{file.name} {known.sha256(file.resolve())}\n".encode())
        except OSError as error:
            raise UsageError(file, f"cannot be read: {error}", "make it readable") from error
    known.save()
    return digest.hexdigest()
