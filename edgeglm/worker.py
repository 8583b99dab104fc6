"""Workers: modules of ours that do a task in a process of their own.

What a worker loads, keeps or crashes on ends with its process. Its ``main`` is `serve`: it reads a task on stdin, and
writes frames on what was its stdout: how far it is, then its result or its error. Each frame is MessagePack behind its
length. What libraries print goes to stderr, whose end explains a crash.
"""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any, Generic, TypeVar

import msgspec

import edgeglm
from edgeglm.errors import BudgetError, EdgeglmError
from edgeglm.exits import explain
from edgeglm.process import KILLED, child, ended

T = TypeVar("T")
Task = TypeVar("Task")

# Of a worker's stderr: far more than the traceback that it may end with.
TAIL_BYTES = 1 << 18
# Bytes of a frame's length.
_LENGTH = 8
# The worker's edgeglm is ours, a folder or run.pyz; the current folder is the user's, and holds no modules for us.
# Of what it imports nothing is garbage, and looking for some takes a fifth of the time.
_START = """\
import gc, sys
gc.disable()
name, place = sys.argv[1:]
sys.path[:] = filter(None, sys.path)
if place not in sys.path:
    sys.path.insert(0, place)
from importlib import import_module
sys.exit(import_module(name).main())
"""


class Progress(msgspec.Struct, frozen=True, tag="progress"):
    """The progress of a worker, from 0 to 1."""

    done: float


class Result(msgspec.Struct, frozen=True, tag="result"):
    """The result of a worker, as MessagePack."""

    value: bytes


class Failure(msgspec.Struct, frozen=True, tag="failure"):
    """The error that ended a worker, and further ones of its kind: exit code, what, why and remedy of each."""

    errors: list[tuple[int, str, str, str]]


Frame = Progress | Result | Failure


class Crashed(Exception):
    """A worker ended without a result or an error of ours.

    Args:
        status: Its exit code, or minus the signal that ended it.
        lines: The end of what it wrote on stderr.
    """

    def __init__(self, status: int, lines: Sequence[str]) -> None:
        self.status, self.lines = status, list(lines)
        super().__init__(self.lines[-1] if self.lines else ended(status))


class Overdue(Exception):
    """A worker or program took longer than it may."""


# -- in us -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Worker(Generic[T]):
    """A kind of worker.

    Args:
        module: The dotted name of its module, whose ``main`` is `serve`.
        result: The type of what it makes.
        name: What it is called in an error.
        remedy: What to do where memory is too short for it.
        seconds: How long it may take.
        start: What starts its process, as `child` does.
    """

    module: str
    result: type[T]
    name: str
    remedy: str = "free some memory"
    seconds: float | None = None
    start: Callable[..., AbstractContextManager[subprocess.Popen[Any]]] = child

    def run(self, task: object, what: str, show: Callable[[float], None] = lambda done: None) -> T:
        """Have it do a task, and return what it made.

        Args:
            task: A value that the worker's task type reads.
            what: What is at fault where memory runs out.
            show: Told how far it is, from 0 to 1.

        Raises:
            EdgeglmError: The worker raised it.
            BudgetError: It was killed, most likely because memory ran out.
            Overdue: It took longer than it may.
            Crashed: It ended in another way.
        """
        command = [sys.executable, "-c", _START, self.module, str(Path(edgeglm.__file__).parents[1])]
        pipe = subprocess.PIPE
        options: dict[str, Any] = {"stdin": pipe, "stdout": pipe, "stderr": pipe}
        # A session of its own: Ctrl-C is for us, and we end it.
        with (
            self.start(command, start_new_session=True, **options) as process,
            _deadline(process, self.seconds) as overdue,
        ):
            frame, lines = _talk(process, task, show)
        if isinstance(frame, Failure):
            raise error_of(frame)
        if isinstance(frame, Result) and not process.returncode:
            return msgspec.msgpack.decode(frame.value, type=self.result, dec_hook=_typed)
        if overdue.is_set():
            raise Overdue
        if process.returncode == KILLED:
            raise BudgetError(what, f"{self.name} was killed, most likely because memory ran out", self.remedy)
        raise Crashed(process.returncode, lines)


def _talk(
    process: subprocess.Popen[bytes], task: object, show: Callable[[float], None]
) -> tuple[Frame | None, list[str]]:
    """Send the task, show the progress, and return the last frame and the end of stderr, when the process has ended."""
    assert process.stdin
    assert process.stdout
    assert process.stderr
    tail = _Tail(process.stderr)
    with suppress(BrokenPipeError), process.stdin as stdin:  # where it has ended, stderr says why
        stdin.write(msgspec.msgpack.encode(task, enc_hook=_plain))
    frame: Frame | None = None
    for frame in _frames(process.stdout):
        if isinstance(frame, Progress):
            show(frame.done)
    process.wait()
    return frame, tail.lines()


@contextmanager
def _deadline(process: subprocess.Popen[Any], seconds: float | None) -> Iterator[threading.Event]:
    """Kill a process when its time is over; whether it was."""
    over = threading.Event()

    def end() -> None:
        over.set()
        process.kill()

    timer = threading.Timer(seconds or 0, end)
    timer.daemon = True
    if seconds is not None:
        timer.start()
    try:
        yield over
    finally:
        timer.cancel()


class _Tail:
    """The end of a stream, read beside everything else, so that its writer never waits."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream, self._bytes = stream, b""
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        with suppress(ValueError, OSError):  # closed meanwhile
            for chunk in iter(partial(os.read, self._stream.fileno(), TAIL_BYTES), b""):
                self._bytes = (self._bytes + chunk)[-TAIL_BYTES:]

    def lines(self) -> list[str]:
        """Wait for what its writer left, and return the lines that say something."""
        self._thread.join(1)  # not longer: a process that the writer left behind may hold it open
        lines = self._bytes.decode(errors="replace").splitlines()
        return [line.strip() for line in lines if line.strip()]


def _frames(stream: IO[bytes]) -> Iterator[Frame]:
    """Yield whole frames; one that its writer did not end is none."""
    while len(size := stream.read(_LENGTH)) == _LENGTH:
        length = int.from_bytes(size, "little")
        if len(data := stream.read(length)) < length:
            return
        yield msgspec.msgpack.decode(data, type=Frame)


def error_of(failure: Failure) -> EdgeglmError:
    """Return the error that a failure tells of."""
    kinds = {kind.exit_code: kind for kind in EdgeglmError.__subclasses__()}
    errors = [kinds.get(code, EdgeglmError)(what, why, remedy) for code, what, why, remedy in failure.errors]
    errors[0].more = tuple(errors[1:])
    return errors[0]


# -- what both send --------------------------------------------------------------------


def _plain(value: object) -> object:
    """Paths travel as texts."""
    if isinstance(value, Path):
        return str(value)
    raise NotImplementedError(f"{type(value).__name__} does not travel")


def _typed(kind: type, value: Any) -> Any:  # noqa: ANN401
    if kind is Path:
        return Path(value)
    raise NotImplementedError(f"{kind.__name__} does not travel")


# -- in the worker ------------------------------------------------------------------------


def serve(task_type: type[Task], body: Callable[[Task, Callable[[float], None]], object]) -> int:
    """Do the task on stdin, and return the exit code; the whole program of a worker.

    Args:
        task_type: The type of the task.
        body: Does it, tells its second argument how far it is, from 0 to 1, and returns a result of builtin types,
            arrays of bytes or msgspec structs.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends us
    gc.freeze()  # the libraries stay: looking through torch for garbage takes a fifth of the time of a trace
    gc.enable()
    with os.fdopen(os.dup(1), "wb", buffering=0) as out:
        os.dup2(2, 1)  # what libraries print is no frame
        try:
            task = msgspec.msgpack.decode(sys.stdin.buffer.read(), type=task_type, dec_hook=_typed)
            made = body(task, lambda done: _write(out, Progress(done)))
        except BaseException as error:
            traceback.print_exc()
            explained = explain(error)
            if explained is None:
                return 1
            _write(out, failure_of(explained))
            return explained.exit_code
        _write(out, Result(msgspec.msgpack.encode(made, enc_hook=_plain)))
    return 0


def failure_of(error: EdgeglmError) -> Failure:
    """Return what travels of an error."""
    return Failure([(failure.exit_code, failure.what, failure.why, failure.remedy) for failure in (error, *error.more)])


def _write(out: IO[bytes], frame: Frame) -> None:
    data = msgspec.msgpack.encode(frame)
    view = memoryview(len(data).to_bytes(_LENGTH, "little") + data)
    while view:  # a pipe takes what it has room for
        view = view[out.write(view) :]
