"""The bundle in the making: it resumes after a kill, and replaces the bundle that was there when it is whole.

Beside the target stands ``TARGET.partial`` with ``bundle/`` (as far as it is written), ``journal`` and, in the
instant of the exchange, ``old/`` (the bundle that is replaced). It is locked while an export writes it.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from collections.abc import Callable, Container, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from threading import RLock
from types import TracebackType

import msgspec

from edgeglm.bundle import is_bundle
from edgeglm.errors import EdgeglmError, UsageError
from edgeglm.export.write.disk import explained, lock_folder, make_folders, sync, sync_tree
from edgeglm.export.write.journal import Journal, Record, job_statement, read_journal
from edgeglm.export.write.output import OutputFile
from edgeglm.export.write.record import Written
from edgeglm.export.write.target import check_target, partial_of
from edgeglm.manifest import MANIFEST, File, Sealed

# Finished jobs are brought to the disk, and count, once this much or this long has gathered.
BATCH_BYTES = 64 << 20
BATCH_SECONDS = 5.0
OURS = {"bundle", "journal", "old"}


class BundleWriter:
    """A bundle in the making, as a context manager inside which its methods may be called.

    Left without `finish`, the jobs that are done stay for the next run; if there are none, no trace stays.

    Args:
        target: The bundle's folder. A bundle or an empty folder there is replaced, anything else is refused.
        key: Everything but the weights that determines the bundle's bytes, hashed. A partial bundle of another key is
            thrown away.
        resume: Whether to go on from a partial bundle of the same key.
        source: What identifies the files of weights, in a line.
        holds: Whether the notes of finished jobs, by their names, are still what these files give; asked where a
            partial bundle was made from another `source`, and thrown away if they are not.

    Attributes:
        target: The folder, resolved.
        note: Why a partial bundle was thrown away, as a sentence for the user; else None.
        resumed_jobs: How many jobs an earlier run has done.

    Raises:
        UsageError: The target is something else, cannot be written, or is being written by another export.
        BudgetError: From any method: the disk is full.
    """

    def __init__(
        self,
        target: Path,
        key: str,
        *,
        resume: bool = True,
        source: str = "",
        holds: Callable[[Mapping[str, str]], bool] = lambda _: False,
    ) -> None:
        self.target = check_target(target)
        self.note: str | None = None
        self.resumed_jobs = 0
        self._key, self._resume = key, resume
        self._source, self._holds = source, holds
        self._partial = partial_of(self.target)
        self._bundle = self._partial / "bundle"
        self._outputs: dict[str, OutputFile] = {}
        self._small: dict[str, File] = {}
        self._record = Record(key)
        self._pending: list[str] = []
        self._mutex = RLock()
        self._finished = False

    def __enter__(self) -> BundleWriter:
        with ExitStack() as opened, explained(self.target, self._partial):
            self._made = make_folders(self._partial.parent)
            opened.callback(os.close, self._locked())
            self._recover()
            self._record = self._resumable(opened) or self._record
            self.resumed_jobs = len(self._record.jobs)
            opened.callback(self._leave)
            self._clear()
            self._journal = Journal(self._partial / "journal", self._record)
            opened.callback(self._journal.close)
            if self._source != self._record.source:
                self._journal.append([f"source {self._source}"])
            sync(self._partial)
            sync(self._partial.parent)
            self._opened = opened.pop_all()
        self._committed_at = time.monotonic()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._opened, suppress(EdgeglmError):  # the error that ended the work says more
            self._commit()

    def file(self, relative: str, size: int) -> OutputFile:
        """Return a file of that size to write into, with its space reserved; ask for it in a resumed run too."""
        known = self._record.sizes.get(relative)
        if known not in (None, size):
            raise ValueError(f"{relative}: has {known} bytes under this key already, not {size}")
        if known is not None:
            return self._outputs[relative]
        with explained(self.target / relative, self._partial):
            output = self._output(self._opened, relative, size, reserved=(self._bundle / relative).exists())
        with self._mutex:
            self._record.sizes[relative] = size
            self._pending.append(f"file {size} {relative}")
        return output

    def small(self, relative: str, data: bytes) -> None:
        """Write a whole file, in a resumed run again."""
        path = self._bundle / relative
        with explained(self.target / relative, self._partial, len(data)):
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(path, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        self._small[relative] = File(hashlib.sha256(data).hexdigest(), len(data))

    def adopt(self, relative: str) -> None:
        """Take a whole file that lies at its path already, in a resumed run again."""
        path = self._bundle / relative
        with explained(self.target / relative, self._partial), open(path, "rb") as file:
            os.fsync(file.fileno())
            digest = hashlib.file_digest(file, "sha256")
            self._small[relative] = File(digest.hexdigest(), path.stat().st_size)

    def done(self, job: str) -> bool:
        """Return whether a job was completed, in this run or an earlier one."""
        return job in self._record.jobs

    def note_of(self, job: str) -> str:
        """Return what `complete` was told of a job, in this run or an earlier one."""
        return self._record.jobs[job]

    @property
    def notes(self) -> Mapping[str, str]:
        """The note of each job, as `complete` got it."""
        return self._record.jobs

    def path(self, relative: str) -> Path:
        """Return where a file lies as long as the bundle is not finished."""
        return self._bundle / relative

    def written(self, job: str, relative: str) -> Written:
        """Return the checksum of what a job wrote into a file, in this run or an earlier one."""
        return self._record.written[job].get(relative) or Written()

    def complete(self, job: str, note: str = "") -> None:
        """State that all bytes of a job are written, with a note. It survives a kill from the next commit on.

        Whatever was written since the last call is the job's.
        """
        with self._mutex:
            written = {relative: sums for relative, output in self._outputs.items() if (sums := output.take())}
            self._record.jobs[job], self._record.written[job] = note, written
            self._pending.append(job_statement(job, note, written))
            unsynced = sum(output.unsynced for output in self._outputs.values())
            if unsynced >= BATCH_BYTES or time.monotonic() - self._committed_at >= BATCH_SECONDS:
                self._commit()

    def seal(self, manifest: Sealed) -> Path:
        """Write the manifest of all files so far; returns the folder, which can be opened as a bundle."""
        self._commit()
        self._small.pop(MANIFEST, None)
        files = {relative: output.entry() for relative, output in self._outputs.items()} | self._small
        self.small(MANIFEST, msgspec.structs.replace(manifest, files=files).to_bytes())
        return self._bundle

    def finish(self, manifest: Sealed) -> Path:
        """Write the manifest with the hashes of all files, and put the bundle in its place, whose path is returned."""
        self.seal(manifest)
        with explained(self.target, self._partial):
            sync_tree(self._bundle)
            if is_bundle(check_target(self.target)):
                self.target.rename(self._partial / "old")
            self._bundle.rename(self.target)
            self._finished = True
            sync(self.target.parent)
            shutil.rmtree(self._partial)
        return self.target

    def _commit(self) -> None:
        """Bring to the disk what is written, and only then the statements that vouch for it."""
        with self._mutex, explained(self.target, self._partial):
            for output in self._outputs.values():
                if output.unsynced:
                    output.sync()
            if any(statement.startswith("file ") for statement in self._pending):
                sync_tree(self._bundle)
            if self._pending:
                self._journal.append(self._pending)
                self._pending.clear()
            self._committed_at = time.monotonic()

    def _locked(self) -> int:
        try:
            lock = lock_folder(self._partial)
        except (FileExistsError, NotADirectoryError) as error:
            raise UsageError(self._partial, "is in the way", "move it, or give another target") from error
        if lock is None:
            raise UsageError(self.target, "another export is writing it", "wait for it, or give another target")
        if not OURS.issuperset(os.listdir(self._partial)):
            os.close(lock)
            raise UsageError(self._partial, "holds what no export wrote", "move it, or give another target")
        return lock

    def _recover(self) -> None:
        """Put back, or remove, the bundle that a kill in the instant of the exchange left aside."""
        old = self._partial / "old"
        if old.exists():
            if not is_bundle(self.target):
                old.rename(self.target)
                sync(self.target.parent)
            else:
                shutil.rmtree(old)

    def _leave(self) -> None:
        """Keep the partial bundle if there is something in it to go on from, else remove every trace."""
        if self._finished:
            return
        self._recover()
        if not self._record.jobs or not self._bundle.exists():
            shutil.rmtree(self._partial, ignore_errors=True)
        for folder in reversed(self._made):
            with suppress(OSError):
                folder.rmdir()  # only where it is empty

    def _output(self, opened: ExitStack, relative: str, size: int, *, reserved: bool) -> OutputFile:
        output = OutputFile(self._bundle / relative, self.target / relative, size, reserved=reserved)
        opened.callback(output.close)
        self._outputs[relative] = output
        return output

    def _resumable(self, opened: ExitStack) -> Record | None:
        """Return what an earlier run has done, if it is of the same key and source and still as it was written."""
        try:
            record = read_journal(self._partial / "journal")
        except ValueError:
            record, self.note = None, "the partial bundle's journal is damaged: starting over"
        if record is None or not self._resume:
            return None
        if record.key != self._key:
            self.note = "the partial bundle is of another model, option or version: starting over"
        elif any(_size(self._bundle / relative) != size for relative, size in record.sizes.items()) or any(
            ".." in Path(relative).parts or os.path.isabs(relative) for relative in record.sizes
        ):
            self.note = "the partial bundle's files are not as its journal says: starting over"
        elif record.source != self._source and record.jobs and not self._holds(record.jobs):
            self.note = "the partial bundle is of other weights: starting over"
        elif not self._reopened(opened, record):
            self._outputs.clear()
            self.note = "the partial bundle is damaged: starting over"
        return None if self.note else record

    def _reopened(self, opened: ExitStack, record: Record) -> bool:
        """Open the files of a journal, and say whether they hold what it vouches for."""
        vouched: dict[str, list[Written]] = {relative: [] for relative in record.sizes}
        for written in record.written.values():
            for relative, sums in written.items():
                vouched.setdefault(relative, []).append(sums)
        return vouched.keys() == record.sizes.keys() and all(
            self._output(opened, relative, record.sizes[relative], reserved=True).resume(sums)
            for relative, sums in vouched.items()
        )

    def _clear(self) -> None:
        """Remove what the journal does not vouch for."""
        if not self._record.length:
            shutil.rmtree(self._bundle, ignore_errors=True)
        self._bundle.mkdir(exist_ok=True)
        _keep_only(self._bundle, {self._bundle / relative for relative in self._record.sizes})


def _size(path: Path) -> int | None:
    """Return the size of a file that is no link, nor in a folder that is one."""
    return path.stat().st_size if path.is_file() and os.path.realpath(path) == os.path.abspath(path) else None


def _keep_only(folder: Path, files: Container[Path]) -> None:
    for directory, _, names in os.walk(folder, topdown=False):
        for path in (Path(directory, name) for name in names):
            if path not in files:
                path.unlink()
        if Path(directory) != folder:
            with suppress(OSError):
                os.rmdir(directory)  # only where it is empty
