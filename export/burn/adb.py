"""``--via adb``: an Android device whose shell has a Python with the runner's wheels."""

from __future__ import annotations

import shutil

from edgeglm.errors import UnsupportedError
from edgeglm.export.burn.remote import RemoteDevice, last_line
from edgeglm.process import Ran, run_program

BASE = "/data/local/tmp/edgeglm"  # where adb's user may write and execute
LOST = ("error: device ", "error: no devices", "adb: device ", "error: closed")


class Adb(RemoteDevice):
    """A `Device`: the only one there is, or the one that ``ANDROID_SERIAL`` names."""

    def __init__(self, python: str) -> None:
        super().__init__("adb", BASE, python)

    def __enter__(self) -> Adb:
        if not shutil.which("adb"):
            raise UnsupportedError("adb", "is not installed", "run apt install adb")
        ran = run_program(["adb", "get-state"])
        if ran.out.strip() != "device":
            why = last_line(ran.err or ran.out).removeprefix("error: ").removeprefix("adb: ")
            raise UnsupportedError("adb", f"has no device that it can use: {why}", "connect one, and see adb devices")
        super().__enter__()
        return self

    def command(self, script: str) -> list[str]:
        """Return the command that runs a line there, without a terminal, which would change the bytes."""
        return ["adb", "shell", "-T", script]

    def check(self, ran: Ran) -> None:
        """Raise UnsupportedError if adb's message says that the device is gone; it has no exit code for that."""
        if ran.code and ran.err.startswith(LOST):
            raise UnsupportedError("adb", f"lost the device: {last_line(ran.err)}", "connect it again")
