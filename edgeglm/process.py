"""Processes that do not outlive us, whatever ends us."""

from __future__ import annotations

import ctypes
import os
import selectors
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import msgspec

from edgeglm.errors import UnsupportedError
from edgeglm.units import format_size

MAX_OUTPUT = 16 << 20  # bytes of a program's stdout, and of its stderr
# Loaded here, because between fork and exec nothing may be.
_PRCTL = ctypes.CDLL(None).prctl
_PR_SET_PDEATHSIG = 1  # prctl(2)
_PERSONALITY = ctypes.CDLL(None).personality
_ADDR_NO_RANDOMIZE = 0x0040000  # personality(2)
KILLED = -signal.SIGKILL


@contextmanager
def child(
    command: Sequence[str],
    *,
    before: Callable[[], None] | None = None,
    **options: Any,  # noqa: ANN401
) -> Iterator[subprocess.Popen[Any]]:
    """Start a program that does not outlive this block, nor the thread that starts it.

    Args:
        command: The program and its arguments.
        before: Called in the child before the program is loaded; C calls alone are safe there.
        options: Of `subprocess.Popen`.

    Raises:
        OSError: It cannot be started.
    """

    parent = os.getpid()

    def prepare() -> None:
        _PRCTL(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it has ended before that
            os._exit(1)
        if before:
            before()

    process = None
    try:
        # An interrupt inside Popen would lose the child that it has started.
        with _interrupts_held():
            process = subprocess.Popen(command, preexec_fn=prepare, **options)  # noqa: PLW1509
        yield process
    finally:
        if process:
            _end(process)


def die_with_parent() -> None:
    """Have the kernel kill this process when the one that started it ends."""
    parent = os.getppid()
    _PRCTL(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it has ended before that
        os._exit(1)


def _end(process: subprocess.Popen[Any]) -> None:
    process.kill()
    process.wait()
    for stream in (process.stdin, process.stdout, process.stderr):
        if stream:
            with suppress(OSError):  # what was buffered for it goes nowhere
                stream.close()


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """Hold back a Ctrl-C until the end of the block."""
    handler = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(handler):
        yield
        return
    held: list[Any] = []
    signal.signal(signal.SIGINT, lambda *arguments: held.append(arguments))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        if held:
            handler(*held[0])


def at_fixed_addresses() -> None:
    """Have the kernel not randomize where memory lies, for a program whose output depends on it.

    Where a container forbids it, it has no effect.
    """
    _PERSONALITY(_ADDR_NO_RANDOMIZE)


class Ran(msgspec.Struct, frozen=True):
    """A program that has ended: its exit code, or minus the signal that ended it, and what it wrote."""

    code: int
    out: str
    err: str


def run_program(command: Sequence[str], **options: Any) -> Ran:  # noqa: ANN401
    """Run a program to its end, without a stdin; it does not outlive us.

    Raises:
        OSError: It cannot be started.
        UnsupportedError: It writes more than `MAX_OUTPUT`, and was ended.
    """
    options |= {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with child(command, **options) as process:
        out, err = _written(process, command[0])
        return Ran(process.wait(), out, err)


def _written(process: subprocess.Popen[bytes], name: str) -> list[str]:
    """Return what a process writes to stdout and stderr until it closes both."""
    with selectors.DefaultSelector() as open_streams:
        written = [bytearray(), bytearray()]
        for stream, content in zip((process.stdout, process.stderr), written, strict=True):
            assert stream
            open_streams.register(stream, selectors.EVENT_READ, content)
        while open_streams.get_map():
            for key, _ in open_streams.select():
                key.data.extend(piece := os.read(key.fd, 1 << 16))
                if not piece:
                    open_streams.unregister(key.fileobj)
                if len(key.data) > MAX_OUTPUT:
                    why = f"it writes more than {format_size(MAX_OUTPUT)}, and was ended"
                    raise UnsupportedError(name, why, "run it by hand to see what it writes")
    return [content.decode(errors="replace").replace("\r\n", "\n") for content in written]


def ended(status: int) -> str:
    """Say in a clause how a process ended."""
    if status >= 0:
        return f"it ended with exit code {status}"
    with suppress(ValueError):
        return f"it was ended by {signal.Signals(-status).name}"
    return f"it was ended by signal {-status}"
