"""Workers and programs, all of which can be stopped from another thread."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from threading import Lock
from typing import Any, Generic, TypeVar

from edgeglm.errors import EdgeglmError
from edgeglm.export.requests import BuildRequest, PlanRequest, ValidateRequest
from edgeglm.process import child, ended
from edgeglm.worker import Crashed, Worker

PREFIX = "edgeglm: "
T = TypeVar("T")


class Stopped(Exception):
    """The programs were stopped from outside."""


@dataclass(frozen=True)
class Done(Generic[T]):
    """A request or a program that ended: its result, or its exit code and the line of its failure."""

    result: T | None
    code: int = 0
    line: str = ""


class Programs:
    """Runs workers and programs, from several threads if need be, until it is stopped."""

    def __init__(self) -> None:
        self._lock, self._stopped = Lock(), False
        self._running: set[subprocess.Popen[Any]] = set()

    def ask(self, request: PlanRequest | ValidateRequest | BuildRequest, result: type[T]) -> Done[T]:
        """Have a worker of `edgeglm.export.api` answer a request.

        Raises:
            Stopped: It was stopped before that.
        """
        try:
            worker = Worker("edgeglm.export.api_worker", result, "it", start=self._child)
            return Done(worker.run(request, type(request).__name__))
        except EdgeglmError as error:
            done = Done[T](None, error.exit_code, str(error))
        except Crashed as error:
            done = Done(None, min(error.status, 1), ": ".join([ended(error.status), *error.lines[-1:]]))
        if self._stopped:
            raise Stopped
        return done

    def run(self, *arguments: object) -> Done[dict[str, Any]]:
        """Run the device's program with some arguments to its end; its result is what it prints as JSON.

        Raises:
            Stopped: It was stopped before that.
        """
        command = [sys.executable, "-m", "edgeglm.runtimes", *map(str, arguments), "--json"]
        pipe = subprocess.PIPE
        with self._child(command, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, text=True) as process:
            out, err = process.communicate()
        if self._stopped:
            raise Stopped
        if process.returncode:
            return Done(None, process.returncode, _reason(process.returncode, err))
        return Done(json.loads(out))

    def stop(self) -> None:
        """Kill what runs; nothing runs afterwards."""
        with self._lock:
            self._stopped, running = True, list(self._running)
        for process in running:
            process.kill()

    @contextmanager
    def _child(self, command: Sequence[str], **options: Any) -> Iterator[subprocess.Popen[Any]]:  # noqa: ANN401
        """Start a program that `stop` ends. Raises Stopped."""
        with ExitStack() as leave:
            with self._lock:  # what is started is known before `stop` looks
                if self._stopped:
                    raise Stopped
                process = leave.enter_context(child(command, **options))
                self._running.add(process)
            leave.callback(self._running.discard, process)
            yield process


def _reason(code: int, err: str) -> str:
    """Our own line, wherever libraries wrote theirs; of a crash what there is."""
    lines = [line.strip() for line in err.splitlines() if line.strip()]
    ours = [line.removeprefix(PREFIX) for line in lines if line.startswith(PREFIX)]
    if ours:
        return ours[-1]
    return f"{ended(code)}: {lines[-1]}" if lines else ended(code)
