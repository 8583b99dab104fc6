"""The file of a search: a study of Optuna's, whose lock ends with its process."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import Any, cast

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from edgeglm.errors import DamagedFileError, UsageError
from edgeglm.export.write.disk import explained

SEED, NAME = 0, "edgeglm"


class Lock:
    """A lock of Optuna's kind, that the kernel takes back from a process that dies."""

    def __init__(self, file: Path) -> None:
        self.descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)

    def acquire(self) -> bool:
        """Wait for it."""
        fcntl.flock(self.descriptor, fcntl.LOCK_EX)
        return True

    def release(self) -> None:
        """Give it back."""
        fcntl.flock(self.descriptor, fcntl.LOCK_UN)


def _cut_torn_line(lock: Lock) -> None:
    """Cut off a last line that a full disk or a power cut has torn: what follows it would make the whole unreadable."""
    lock.acquire()
    try:
        size = end = os.fstat(lock.descriptor).st_size
        while end and os.pread(lock.descriptor, 1, end - 1) != b"\n":
            end -= 1
        if end and end < size:  # a file without any line is no study, which is said elsewhere
            os.ftruncate(lock.descriptor, end)
    finally:
        lock.release()


def check_study(file: Path, identity: str, *, is_named: bool) -> None:
    """Check before any work that a search can be kept in a file; raises as `open_study`.

    Args:
        file: The file.
        identity: Of what a study that is there must be.
        is_named: Whether the user named it; else its folder is made with the bundle's.
    """
    if file.is_dir():
        raise UsageError(file, "is a folder", "name a file by --study")
    if file.exists() or (is_named and not file.absolute().parent.exists()):
        open_study(file, identity)


def open_study(file: Path, identity: str) -> optuna.Study:
    """Return the study of a file, which is made where there is none.

    Args:
        file: A journal.
        identity: Of what it must be.

    Raises:
        UsageError: It is of something else, or cannot be read or written.
        BudgetError: The disk is full.
        DamagedFileError: It is no study.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with explained(file, file.absolute().parent):
        try:
            study = _load(file)
            known = study.user_attrs.get("identity")
        except OSError:
            raise
        except Exception as error:  # of what the file holds: JSON's, keys', Optuna's own
            raise DamagedFileError(file, "is no study", "remove it, or name another by --study") from error
    if known is None and not study.trials:
        study.set_user_attr("identity", identity)
    elif known != identity:
        why = "is a study of another model, device, limit, goal or version, or of other samples or options"
        raise UsageError(file, why, "name another file by --study")
    return study


def _load(file: Path) -> optuna.Study:
    lock = Lock(file)
    _cut_torn_line(lock)
    storage = JournalStorage(JournalFileBackend(str(file), cast(Any, lock)))
    sampler = optuna.samplers.TPESampler(seed=SEED, multivariate=True, n_startup_trials=6)
    return optuna.create_study(
        storage=storage, sampler=sampler, study_name=NAME, directions=["minimize"] * 2, load_if_exists=True
    )
