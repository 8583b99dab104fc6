"""A command in this process, with all that it and the libraries below Python write: a fixture's, which has no capfd."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, redirect_stderr, redirect_stdout
from typing import IO

from edgeglm.cli.main import main
from tests.cli.commands import Done


def run_captured(*arguments: object) -> Done:
    """Exit code, stdout and stderr."""
    with _taken(1, redirect_stdout) as out, _taken(2, redirect_stderr) as err:
        status = main([str(argument) for argument in arguments])
        return status, _read(out), _read(err)


@contextmanager
def _taken(descriptor: int, redirect: Callable[[IO[str]], AbstractContextManager[IO[str]]]) -> Iterator[IO[str]]:
    """Have a file instead of a stream, for Python and for all else in this process."""
    with tempfile.TemporaryFile("w+", encoding="utf-8") as file:
        kept = os.dup(descriptor)
        os.dup2(file.fileno(), descriptor)
        try:
            with redirect(file):
                yield file
        finally:
            os.dup2(kept, descriptor)
            os.close(kept)


def _read(file: IO[str]) -> str:
    file.seek(0)  # what is buffered is written first
    return file.read()
