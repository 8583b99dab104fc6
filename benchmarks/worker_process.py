"""Processes of ``benchmarks/episode_worker.py``, which reply to one request after the other."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
import zlib
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

from benchmarks.episode_worker import Figures
from edgeglm.blocks import KIND

NO_OPTIONS = "{}"
WORKER = Path(__file__).with_name("episode_worker.py")


class Contender(NamedTuple):
    """What runs in a process: an interpreter, a name that the worker knows, a model, and options in JSON."""

    python: str
    kind: str
    model: Path
    episodes: Path
    options: str = NO_OPTIONS

    @property
    def cache(self) -> Path:
        """The folder of what its process keeps for later ones, which no other contender finds."""
        name = f"{self.kind} {self.model.name} {zlib.crc32(self.options.encode()):08x}"
        return self.episodes.absolute().parent / "cache" / name

    def forget(self) -> None:
        """Remove the prefixes and images that were kept."""
        shutil.rmtree(self.cache / "edgeglm" / KIND, ignore_errors=True)


class WorkerProcess:
    """A contender's process, from its start until it is closed; a context manager.

    Attributes:
        loaded: Seconds from the start of the process until the contender was loaded.
    """

    def __init__(self, contender: Contender, threads: int) -> None:
        start = time.perf_counter()
        script = (contender.kind, contender.model, threads, contender.episodes, contender.options)
        self.process = subprocess.Popen(
            [contender.python, str(WORKER), *map(str, script)],
            env={**os.environ, "XDG_CACHE_HOME": str(contender.cache)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._reply()
        self.loaded = time.perf_counter() - start

    def __enter__(self) -> WorkerProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait()

    def ask(self, *request: str | int) -> Figures:
        """Return the figures that a request gives."""
        assert self.process.stdin
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return self._reply()

    def _reply(self) -> Figures:
        assert self.process.stdout
        if not (line := self.process.stdout.readline()):
            raise SystemExit(f"a contender ended with {self.process.wait()}")
        figures: Figures = json.loads(line)
        return figures


def forget_pages(path: Path) -> None:
    """Drop a model's files from the page cache; those of libraries stay."""
    for file in [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]:
        descriptor = os.open(file, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)
