"""Results of the original, kept in ``$XDG_CACHE_HOME/edgeglm/answers`` by what they were computed from."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import msgspec

from edgeglm.cache import cache_folder
from edgeglm.digest import KnownHashes
from edgeglm.errors import UsageError

T = TypeVar("T")
# Changes with what edgeglm reads of a checkpoint, so that results of an older reading are not taken.
READING = b"2"


def cached(key: Iterable[bytes], kind: type[T], compute: Callable[[], T]) -> T:
    """What was computed under `key` before, else `compute`'s result, which is kept. A damaged file is no result."""
    digest = hashlib.sha256(READING)
    for piece in key:
        digest.update(hashlib.sha256(piece).digest())
    folder = cache_folder()
    if folder is None:
        return compute()
    file = folder / "answers" / f"{digest.hexdigest()[:32]}.json"
    with suppress(OSError, msgspec.DecodeError):
        return msgspec.json.decode(file.read_bytes(), type=kind)
    result = compute()
    with suppress(OSError):  # without a cache, it is computed again
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_suffix(f".{os.getpid()}")
        partial.write_bytes(msgspec.json.encode(result))
        partial.replace(file)
    return result


def checkpoint_key(folder: Path) -> bytes:
    """What identifies a checkpoint: the names and hashes of its files; hashes of files that did not change are known.

    Raises:
        UsageError: A file cannot be read.
    """
    known, digest = KnownHashes(folder), hashlib.sha256()
    for file in sorted(path for path in folder.iterdir() if path.is_file()):
        try:
            # A download from the hub is a folder of links.
            digest.update(f"{file.name} {known.sha256(file.resolve())}\n".encode())
        except OSError as error:
            raise UsageError(file, f"cannot be read: {error}", "make it readable") from error
    known.save()
    return digest.digest()
