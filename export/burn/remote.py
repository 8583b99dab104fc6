"""A device behind a shell: files go there as one stream of tar, Python runs in a folder that is removed at the end."""

from __future__ import annotations

import shlex
import subprocess
import sys
import tarfile
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from edgeglm.errors import BudgetError, DamagedFileError, UnsupportedError
from edgeglm.files import open_regular
from edgeglm.process import MAX_OUTPUT, Ran, child, run_program
from edgeglm.units import format_size

NOT_FOUND = 127  # of a shell
# The folder's name, and how much room there is; what is pushed may be larger than a /tmp in memory.
MAKE = 'mkdir -p {base} && cd {base} && folder=$(mktemp -d "$PWD/burn.XXXXXX") && echo "$folder" && df -Pk "$folder"'
# By its own file of the process: it is interrupted, so that it ends its children, and killed if it takes long.
END = """cd {folder} 2>/dev/null || exit 0
if read -r pid < pid && kill -INT "$pid"; then
    for second in 1 2 3 4 5 6 7 8 9 10; do kill -0 "$pid" || break; sleep 1; done
    kill -KILL "$pid"
fi 2>/dev/null
cd / && rm -rf {folder}"""


class RemoteDevice(ABC):
    """A `Device` that a subclass reaches with a command.

    Args:
        title: The device in a few words.
        base: A folder of the device to make one's own in, as its shell writes it.
        python: Python's command there.
    """

    emulated = False

    def __init__(self, title: str, base: str, python: str) -> None:
        self.title = title
        self._base, self._python, self._folder = base, python, ""

    @abstractmethod
    def command(self, script: str) -> list[str]:
        """Return the local command that has the device's shell run a script."""

    @abstractmethod
    def check(self, ran: Ran) -> None:
        """Raise UnsupportedError where it was not the script that failed, but the way to the device."""

    def __enter__(self) -> RemoteDevice:
        ran = self._shell(MAKE.format(base=self._base))
        folder, _, sizes = ran.out.partition("\n")
        free = (sizes.splitlines() or [""])[-1].split()[3:4]
        if ran.code or not folder.startswith("/") or not "".join(free).isdecimal():
            raise UnsupportedError(self.title, f"no folder can be made there: {last_line(ran.err)}", "free some room")
        self._folder, self._free = folder, int(free[0]) << 10
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._folder and self._run(END.format(folder=shlex.quote(self._folder))).code:
            print(f"note: {self._folder} may be left on {self.title}", file=sys.stderr)

    def push(self, files: Sequence[tuple[Path, str]]) -> None:
        """Stream them; a file of gigabytes is never in memory."""
        needed = sum(_size(source) for source, _ in files)
        if needed > self._free:
            why = f"has {format_size(self._free)} free, and the test takes {format_size(needed)}"
            raise BudgetError(self.title, why, "free some there")
        script = f"cd {shlex.quote(self._folder)} && tar -xf -"
        with tempfile.TemporaryFile() as err:
            self._stream(files, script, err)

    def _stream(self, files: Sequence[tuple[Path, str]], script: str, err: IO[bytes]) -> None:
        options: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.DEVNULL, "stderr": err}
        with child(self.command(script), **options) as process:
            assert process.stdin
            with (
                suppress(BrokenPipeError),  # the reason is on the other side
                process.stdin as pipe,
                tarfile.open(fileobj=pipe, mode="w|", dereference=True) as archive,
            ):
                for source, target in files:
                    _add(archive, source, target)
            status = process.wait()
        if status:
            err.seek(0)
            told = err.read(MAX_OUTPUT).decode(errors="replace")
            self.check(Ran(status, "", told))
            why = f"files cannot be put there: {last_line(told)}"
            raise UnsupportedError(self.title, why, "see to it there")

    def python(self, arguments: Sequence[str], memory: int | None = None) -> Ran:
        """Run Python as a process that `__exit__` finds, in at most `memory` bytes of address space."""
        limit = f"ulimit -v {memory >> 10} && " if memory else ""
        command = f"{self._python} {shlex.join(arguments)}"
        script = f"cd {shlex.quote(self._folder)} && echo $$ > pid && {limit}exec {command}"
        ran = self._shell(script)
        self._run(f"rm -f {shlex.quote(self._folder)}/pid")
        if ran.code == NOT_FOUND:
            remedy = "install Python 3.10 or later there, or name it by --python"
            raise UnsupportedError(self.title, f"has no {self._python}", remedy)
        return ran

    def _shell(self, script: str) -> Ran:
        ran = self._run(script)
        self.check(ran)
        return ran

    def _run(self, script: str) -> Ran:
        try:
            return run_program(self.command(script))
        except UnsupportedError as error:
            raise UnsupportedError(self.title, error.why, error.remedy) from error


def _size(source: Path) -> int:
    try:
        return source.stat().st_size
    except OSError as error:
        raise _changed(source, error) from error


def _add(archive: tarfile.TarFile, source: Path, target: str) -> None:
    """Put a file into an archive. Raises DamagedFileError for one that is not what was checked a moment ago."""
    try:
        with open_regular(source) as stream:
            archive.addfile(archive.gettarinfo(arcname=target, fileobj=stream), stream)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise _changed(source, error) from error


def _changed(source: Path, error: OSError) -> DamagedFileError:
    return DamagedFileError(source, f"cannot be read: {error.strerror or error}", "copy the bundle again")


def last_line(text: str) -> str:
    """Return what a program said last."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "it does not say why"
