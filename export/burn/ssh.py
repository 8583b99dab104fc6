"""``--via ssh HOST``: the system's ssh, with all that the user's configuration says of the host."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import tempfile
from types import TracebackType
from typing import Any

from edgeglm.errors import UnsupportedError, UsageError
from edgeglm.export.burn.remote import RemoteDevice, last_line
from edgeglm.process import MAX_OUTPUT, Ran, child, run_program
from edgeglm.scratch import scratch_folder

FAILED = 255  # ssh's own code
BASE = '"$HOME"/.cache/edgeglm'
# One connection for the whole test, so that a password is asked for once; it ends by itself if we are killed.
MASTER = ("-o", "ControlMaster=yes", "-o", "ControlPersist=60", "-o", "ServerAliveInterval=15")


class Ssh(RemoteDevice):
    """A `Device` by its name or address, or by ``user@host``."""

    def __init__(self, host: str, python: str) -> None:
        if not host or host.startswith("-"):
            raise UsageError("--via ssh", "names no host", "write --via ssh HOST")
        super().__init__(f"ssh {host}", BASE, python)
        self._host = host

    def __enter__(self) -> Ssh:
        if not shutil.which("ssh"):
            raise UnsupportedError("ssh", "is not installed", "run apt install openssh-client")
        self._scratch = scratch_folder("ssh")
        self._sockets = self._scratch.__enter__()
        try:
            self._connect()
            super().__enter__()
        except BaseException:
            self._disconnect()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            super().__exit__(kind, error, trace)
        finally:
            self._disconnect()

    def command(self, script: str) -> list[str]:
        """Return the command in a POSIX shell, whatever the user's own is."""
        return [*self._ssh(), self._host, f"sh -c {shlex.quote(script)}"]

    def check(self, ran: Ran) -> None:
        """Raise UnsupportedError if ssh's exit code says that the connection failed."""
        if ran.code == FAILED:
            remedy = f"see that 'ssh {self._host} true' works"
            raise UnsupportedError(self.title, f"cannot be reached: {last_line(ran.err)}", remedy)

    def _ssh(self) -> list[str]:
        return ["ssh", "-o", f"ControlPath={self._sockets / 'socket'}"]

    def _connect(self) -> None:
        # Into a file, because the connection stays and may keep a pipe open.
        with tempfile.TemporaryFile("w+") as err:
            command = [*self._ssh(), *MASTER, self._host, "true"]
            options: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": err}
            with child(command, **options) as process:
                status = process.wait()
            err.seek(0)
            self.check(Ran(status, "", err.read(MAX_OUTPUT)))

    def _disconnect(self) -> None:
        run_program([*self._ssh(), "-O", "exit", self._host])
        self._scratch.__exit__(None, None, None)
