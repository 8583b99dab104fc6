"""A worker of the tests: each of its tasks ends in another way."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable

from edgeglm.errors import AccuracyError, UnsupportedError
from edgeglm.worker import serve


def _answer(show: Callable[[float], None]) -> dict[str, bytes]:
    os.write(1, b"a library prints\n")
    show(0.5)
    print("and prints")
    show(1.0)
    return {"answer": bytes(1 << 20)}


def _refuse(show: Callable[[float], None]) -> None:
    more = [AccuracyError("decoder", "is worse", "measure")]
    raise UnsupportedError("vision: a", "b; c", "d", more)


def _full(show: Callable[[float], None]) -> None:
    raise OSError(errno.ENOSPC, "no space", "there")


def _short(show: Callable[[float], None]) -> None:
    raise MemoryError


def _broken(show: Callable[[float], None]) -> None:
    print("a library's last words", file=sys.stderr)
    raise ValueError("too odd")


def _leave_a_child(show: Callable[[float], None]) -> str:
    subprocess.Popen(["sleep", "60"], start_new_session=True)
    return "done"


TASKS: dict[str, Callable[[Callable[[float], None]], object]] = {
    "answer": _answer,
    "refuse": _refuse,
    "full": _full,
    "short": _short,
    "broken": _broken,
    "leave": _leave_a_child,
    "killed": lambda show: os.kill(os.getpid(), signal.SIGKILL),
    "segfault": lambda show: os.kill(os.getpid(), signal.SIGSEGV),
    "exit": lambda show: os._exit(3),
    "sleep": lambda show: time.sleep(600),
}


def main() -> int:
    """Do a task by its name."""
    return serve(str, lambda task, show: TASKS[task](show))
