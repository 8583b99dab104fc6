"""End every program of ours: streams that take whatever is written, a code and a line for whatever is raised.

The command line, ``python -m edgeglm.runtimes`` and ``run.pyz`` share it, so it imports nothing that is not Python's.
"""

from __future__ import annotations

import errno
import os
import re
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from types import FrameType

from edgeglm.errors import BudgetError, DamagedFileError, EdgeglmError, UnsupportedError, UsageError

INTERRUPTED = 130
# 128 + SIGTERM, as a shell has it of a program that the signal ends.
TERMINATED = 143
# 128 + SIGPIPE, with which a program ends whose reader went away.
BROKEN_PIPE = 141
# What a library in Rust raises where its code is at its end; it is no Exception.
RUST_PANIC = "PanicException"
DISK_IS_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
NOT_ALLOWED = (errno.EACCES, errno.EPERM, errno.EROFS)
NO_TEMPORARY = "No usable temporary directory"
# What libraries say of memory that they do not get, most of them under an exception of their own.
NO_MEMORY = re.compile(
    "cannot allocate memory|failed to map segment|bad[ _]alloc|failed to allocate memory|can't start new thread", re.I
)


class _Terminated(KeyboardInterrupt):
    """SIGTERM, on which a command puts its files in order as on Ctrl-C."""


def run_program(body: Callable[[], int | None], *, debug: Callable[[], bool], again: str) -> int:
    """Run the body of a program and return the exit code; a failure is one line on stderr.

    Args:
        body: Returns the exit code, None for 0, or raises.
        debug: Whether the traceback of an error is wanted.
        again: How to get it, in a clause.
    """
    _open_streams()
    came: list[KeyboardInterrupt] = []
    try:
        with _interrupted_once(came):
            status = _status(body)
            # Here, where a closed pipe is caught, and not at the interpreter's exit, where it is not.
            sys.stdout.flush()
            return status
    except BrokenPipeError:
        _discard(sys.stdout)
        return BROKEN_PIPE
    except BaseException as error:
        # Libraries that it meets while they are loaded make an error of their own of it.
        if came or isinstance(error, KeyboardInterrupt):
            return _interrupted(came)
        if not isinstance(error, Exception) and type(error).__name__ != RUST_PANIC:
            raise
        return _report(error, debug(), again)


@contextmanager
def installed(what: str, package: str) -> Iterator[None]:
    """Say of a module that is missing how to get it.

    Raises:
        UnsupportedError: It is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        why = f"needs {error.name}, which is not installed"
        raise UnsupportedError(what, why, f"run pip install {package}") from error


def _status(body: Callable[[], int | None]) -> int:
    try:
        return body() or 0
    except SystemExit as end:  # argparse's, behind its help
        return end.code if isinstance(end.code, int) else int(end.code is not None)


def _open_streams() -> None:
    """Have all three: one that the shell closed leads nowhere, and none fails on a character that it cannot show."""
    for number in range(3):
        with suppress(OSError):
            os.fstat(number)
            continue
        # Else the next file that is opened gets the number, and whatever a library prints.
        os.open(os.devnull, os.O_RDWR)
    sys.stdin = sys.stdin or open(os.devnull, encoding="utf-8")  # noqa: SIM115
    sys.stdout = sys.stdout or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    sys.stderr = sys.stderr or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    for stream, errors in ((sys.stdin, "surrogateescape"), (sys.stdout, "backslashreplace")):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors=errors)


@contextmanager
def _interrupted_once(came: list[KeyboardInterrupt]) -> Iterator[None]:
    """Let the first Ctrl-C end the command, and the next ones not disturb it while it puts its files in order.

    So does SIGTERM, the second of which ends it at once.

    Args:
        came: Takes the one that came.
    """

    def interrupt(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        came.append(KeyboardInterrupt())
        raise came[-1]

    def terminate(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        came.append(_Terminated())
        raise came[-1]

    with (
        _handled(signal.SIGINT, interrupt, signal.default_int_handler),
        _handled(signal.SIGTERM, terminate, signal.SIG_DFL),
    ):
        yield


@contextmanager
def _handled(number: signal.Signals, handler: Callable[[int, FrameType | None], None], usual: object) -> Iterator[None]:
    """Handle a signal; whoever has it ignored (nohup, a shell's background) or handles it in another way keeps that."""
    before = signal.getsignal(number)
    if threading.current_thread() is not threading.main_thread() or before is not usual:
        yield
        return
    signal.signal(number, handler)
    try:
        yield
    finally:
        if signal.getsignal(number) is handler:
            signal.signal(number, before)


def _interrupted(came: Sequence[KeyboardInterrupt]) -> int:
    """Say so, and return the exit code."""
    is_terminated = any(isinstance(interrupt, _Terminated) for interrupt in came)
    _say("terminated" if is_terminated else "interrupted")
    return TERMINATED if is_terminated else INTERRUPTED


def _report(error: BaseException, debug: bool, again: str) -> int:
    if debug:
        with suppress(OSError):
            traceback.print_exception(error)
    if _is_of_disk(error):
        _discard(sys.stdout)
    explained = explain(error) or _unexplained(error, again)
    for line in (explained, *explained.more):
        _say(str(line))
    with suppress(OSError, ValueError):
        sys.stdout.flush()
    return explained.exit_code


def explain(error: BaseException) -> EdgeglmError | None:
    """Return what ended a program as an error of ours; None of a bug.

    It is its own, memory or disk that ran out, or a file that this user may not read or write.
    """
    if isinstance(error, EdgeglmError) and not _is_of_memory(error.__cause__):
        return error
    if _is_of_disk(error):
        return _of_disk(error)
    if isinstance(error, OSError) and error.errno in NOT_ALLOWED and error.filename is not None:
        why = f"cannot be used by this user: {error.strerror}"
        return UsageError(error.filename, why, "allow it, or give another place")
    if NO_TEMPORARY in str(error):
        return BudgetError("TMPDIR", "no folder for temporary files can be written", "free some, or set it to one")
    if _is_of_memory(error) or _is_of_memory(error.__cause__):
        return BudgetError("memory", "is not enough for this", "free some, or allow the process more")
    return None


def _unexplained(error: BaseException, again: str) -> EdgeglmError:
    if type(error).__module__.startswith("onnxruntime"):
        why = f"ONNX Runtime cannot run a module: {next(iter(str(error).splitlines()), '')}"
        return DamagedFileError("bundle", why, "export it again with this version of edgeglm")
    why = f"{type(error).__name__}: {error}"
    return EdgeglmError("internal error", why, f"this is a bug in edgeglm, {again} for the traceback")


def _of_disk(error: BaseException) -> BudgetError:
    place = getattr(error, "filename", None) or "disk"
    if getattr(error, "errno", None) == errno.EFBIG:
        return BudgetError(place, "may not become so large here", "allow the process larger files: ulimit -f")
    return BudgetError(place, "no space is left", "free some")


def _is_of_memory(error: BaseException | None) -> bool:
    """Return whether memory was short, also where an engine could not load a file for want of it."""
    return isinstance(error, MemoryError) or bool(error and NO_MEMORY.search(str(error)))


def _is_of_disk(error: BaseException) -> bool:
    return isinstance(error, OSError) and error.errno in DISK_IS_FULL


def _say(line: str) -> None:
    """Print one line on stderr, if that can be written."""
    try:
        print(f"edgeglm: {line}", file=sys.stderr, flush=True)
    except (OSError, ValueError):
        _discard(sys.stderr)


def _discard(stream: object) -> None:
    """Lead a stream nowhere: what is still buffered would fail again at the interpreter's exit."""
    with suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())  # type: ignore[attr-defined]
        os.close(nowhere)
