"""Keep large files in the store: an entry is a folder, whose files an engine opens by path or maps.

They are hashed before they are opened and never read into memory, and a large one that has not changed is hashed once
(`edgeglm.digest`). Like a small entry, a large one appears whole or not at all, is made by one process while others
wait, and is not believed if it is damaged, has another one's name or could be written by another user.
"""

from __future__ import annotations

import os
import resource
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from edgeglm import store
from edgeglm.cache import cache_folder
from edgeglm.digest import KnownHashes
from edgeglm.errors import BudgetError, UnsupportedError
from edgeglm.exits import DISK_IS_FULL
from edgeglm.units import format_size

# In the folder: the hashes of its files, and the note of whoever made it, sealed as a small entry is.
RECORD, NOTE = "entry", ""
LARGER = "free some of the disk, or set XDG_CACHE_HOME to a larger one"


@dataclass(frozen=True)
class LargeEntry:
    """An entry whose files may be opened; `fresh` if it was made just now."""

    folder: Path
    note: bytes
    fresh: bool


def find(kind: str, key: str) -> LargeEntry | None:
    """Return an entry whose files are those that were made; None where there is none."""
    root = cache_folder()
    if root is None or not _is_private(root / kind):
        return None
    folder = root / kind / key
    record = store.unseal(store.read_private(folder / RECORD), kind, key)
    if record is None or not _is_whole(folder, record):
        return None
    return LargeEntry(folder, record[NOTE], fresh=False)


def find_or_make(
    kind: str, key: str, make: Callable[[Path], bytes], what: object, name: str, room: int = 0
) -> LargeEntry:
    """Return an entry, made if there is none; of two processes that want it at once, one waits for the other.

    Args:
        kind: The folder of all entries of its kind.
        key: The hash of all that it is made from.
        make: Writes its files, without folders, into the empty folder that it gets, and returns a note to keep.
        what: What needs it, for an error.
        name: What the entry is, in an error's clause.
        room: Bytes that its files may take.

    Raises:
        UnsupportedError: There is no cache folder, it cannot be written, or others may write there.
        BudgetError: The disk is full.
        Exception: Whatever `make` raises.
    """
    entry = find(kind, key)
    if entry:
        return entry
    root = cache_folder()
    if root is None:
        raise UnsupportedError(what, f"there is no home folder to keep {name} in", "set XDG_CACHE_HOME")
    parent = root / kind
    with _explained(parent, what, name):
        parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not _is_private(parent):
        why = f"{name} cannot be kept in {parent}: others may write there"
        raise UnsupportedError(what, why, "set XDG_CACHE_HOME to a folder of your own")
    with store.making(kind, key), _explained(parent, what, name):
        return find(kind, key) or _make(parent / key, make, what, name, room)


def _is_whole(folder: Path, record: dict[str, bytes]) -> bool:
    hashes = KnownHashes(folder)
    try:
        return _is_private(folder) and all(
            store.is_private((folder / name).lstat()) and hashes.sha256(folder / name) == sha256.decode()
            for name, sha256 in record.items()
            if name != NOTE
        )
    except OSError:
        return False
    finally:
        hashes.save()


def _is_private(folder: Path) -> bool:
    try:
        status = folder.stat()
    except (OSError, ValueError):
        return False
    return stat.S_ISDIR(status.st_mode) and store.is_private(status)


def _make(folder: Path, make: Callable[[Path], bytes], what: object, name: str, room: int) -> LargeEntry:
    with store.partial(folder) as partial:
        _check_room(partial, what, name, room)
        note = make(partial)
        _seal(partial, folder, note)
        store.remove(folder)  # a damaged one
        os.rename(partial, folder)
    return LargeEntry(folder, note, fresh=True)


def _check_room(partial: Path, what: object, name: str, room: int) -> None:
    """Check it beforehand: an engine may abort the process where a file of its cannot be written to its end."""
    free, place = shutil.disk_usage(partial).free, partial.parent
    if free < room:
        why = f"{name} may take about {format_size(room)}, and {place} has {format_size(free)}"
        raise BudgetError(what, why, LARGER)
    longest, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    if longest != resource.RLIM_INFINITY and longest < room:
        why = f"{name} cannot be written in {place}: a file may have at most {format_size(longest)} here"
        raise BudgetError(what, why, "allow the process larger files: ulimit -f")


def _seal(partial: Path, folder: Path, note: bytes) -> None:
    """Hash the files that are to be the entry `folder`, and close them to others."""
    hashes, record = KnownHashes(partial, trust=False), {NOTE: note}
    for path in sorted(partial.iterdir()):
        path.chmod(0o600)
        record[path.name] = hashes.sha256(path).encode()
    descriptor = os.open(partial / RECORD, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with open(descriptor, "wb") as opened:
        opened.write(store.seal(record, folder.parent.name, folder.name))


@contextmanager
def _explained(folder: Path, what: object, name: str) -> Iterator[None]:
    """Say in one line that a folder does not take an entry."""
    try:
        yield
    except OSError as error:
        why = f"{name} cannot be kept in {folder}: {error.strerror or error}"
        if error.errno in DISK_IS_FULL:
            raise BudgetError(what, why, LARGER) from error
        raise UnsupportedError(what, why, "set XDG_CACHE_HOME to a writable folder") from error
