"""Results of the original, kept in the store by what they were computed from."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import msgspec

from edgeglm.digest import KnownHashes
from edgeglm.errors import UsageError
from edgeglm.store import find, keep

T = TypeVar("T")
# Changes with what edgeglm reads of a checkpoint, so that results of an older reading are not taken.
READING = b"2"
RESULT = "result.json"


def cached(key: Iterable[bytes], kind: type[T], compute: Callable[[], T]) -> T:
    """Return what was computed under `key` before, else `compute`'s result, which is kept."""
    name = entry_name(key)
    if (known := kept(name, kind)) is not None:
        return known
    result = compute()
    keep_result(name, result)
    return result


def entry_name(key: Iterable[bytes]) -> str:
    """Return the name of what is computed from `key`."""
    digest = hashlib.sha256(READING)
    for piece in key:
        digest.update(hashlib.sha256(piece).digest())
    return digest.hexdigest()[:32]


def kept(name: str, kind: type[T]) -> T | None:
    """Return what is kept under a name; None if nothing is."""
    if known := find("answers", name):
        with suppress(msgspec.DecodeError, KeyError):  # of another version
            return msgspec.json.decode(known[RESULT], type=kind)
    return None


def keep_result(name: str, result: object) -> None:
    """Keep what was computed."""
    keep("answers", name, {RESULT: msgspec.json.encode(result)})


def checkpoint_key(folder: Path, adapter_sha256: str | None = None) -> bytes:
    """Identify a checkpoint by the names and hashes of its files, and its adapter by its hash.

    Hashes of files that did not change are known.

    Raises:
        UsageError: A file cannot be read.
    """
    known, digest = KnownHashes(folder), hashlib.sha256((adapter_sha256 or "").encode())
    for file in sorted(path for path in folder.iterdir() if path.is_file()):
        try:
            # A download from the hub is a folder of links.
            digest.update(f"{file.name} {known.sha256(file.resolve())}\n".encode())
        except OSError as error:
            raise UsageError(file, f"cannot be read: {error}", "make it readable") from error
    known.save()
    return digest.digest()
