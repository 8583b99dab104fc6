"""`edgeglm` commands as processes of their own, all of which can be stopped."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from threading import Lock
from typing import Any

from edgeglm.process import child, end, ended

PREFIX = "edgeglm: "
PATIENCE = 10.0  # seconds for a command to put its files in order


class Stopped(Exception):
    """The commands were stopped from outside."""


@dataclass(frozen=True)
class Done:
    """A command that ended: its exit code, the object that it printed, and the line of its failure."""

    code: int
    result: dict[str, Any]
    line: str


class Programs:
    """Runs commands, from several threads if need be, until it is stopped."""

    def __init__(self) -> None:
        self._lock, self._stopped = Lock(), False
        self._running: set[subprocess.Popen[str]] = set()

    def run(self, *arguments: object) -> Done:
        """Run ``edgeglm ARGUMENTS --json`` to its end.

        Raises:
            Stopped: It was stopped before that.
        """
        command = [sys.executable, "-m", "edgeglm", *map(str, arguments), "--json"]
        pipe, running = subprocess.PIPE, ExitStack()
        with running:
            with self._lock:
                if self._stopped:
                    raise Stopped
                options: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": pipe, "stderr": pipe, "text": True}
                process = running.enter_context(child(command, patience=PATIENCE, **options))
                self._running.add(process)
            running.callback(self._running.discard, process)
            out, err = process.communicate()
        if self._stopped:
            raise Stopped
        return Done(process.returncode, _object(out), _reason(process.returncode, err))

    def stop(self) -> None:
        """Interrupt what runs, and wait until it is gone; nothing runs afterwards."""
        with self._lock:
            self._stopped, running = True, list(self._running)
        for process in running:
            end(process, PATIENCE)


def _object(out: str) -> dict[str, Any]:
    with suppress(json.JSONDecodeError):
        found = json.loads(out)
        return found if isinstance(found, dict) else {}
    return {}


def _reason(code: int, err: str) -> str:
    """Return edgeglm's own line, wherever libraries wrote theirs; of a crash what there is."""
    lines = [line.strip() for line in err.splitlines() if line.strip()]
    ours = [line.removeprefix(PREFIX) for line in lines if line.startswith(PREFIX)]
    if ours or not code:
        return ours[-1] if ours else ""
    how = ended(code)
    return f"{how}: {lines[-1]}" if lines else how
