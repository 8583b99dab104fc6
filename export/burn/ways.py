"""The ways to a device: what ``--via`` names."""

from __future__ import annotations

from edgeglm.bundle import Bundle
from edgeglm.engines import ENGINES
from edgeglm.errors import UsageError
from edgeglm.export.burn.adb import Adb
from edgeglm.export.burn.device import Device
from edgeglm.export.burn.qemu import Qemu
from edgeglm.export.burn.remote import RemoteDevice
from edgeglm.export.burn.ssh import Ssh
from edgeglm.export.write.pyz import WHEELS
from edgeglm.suggest import nearest_name

WAYS = ("adb", "qemu", "ssh")


def open_device(via: str, python: str, bundle: Bundle) -> Device:
    """Return a device that has not been entered.

    Args:
        via: ``qemu``, ``ssh HOST`` or ``adb``.
        python: Python's command there.
        bundle: What will run there.

    Raises:
        UsageError: There is no such way.
    """
    if via == "qemu":
        engines = {ENGINES[module.engine].everywhere for module in bundle.manifest.modules if module.engine}
        wheels = dict.fromkeys([*WHEELS.split(), *sorted(engine.distribution for engine in engines)])
        return Qemu(list(wheels))
    return _remote(via, python)


def open_board(via: str, python: str) -> RemoteDevice:
    """Return a device whose time and memory can be measured; it has not been entered.

    Args:
        via: ``ssh HOST`` or ``adb``.
        python: Python's command there.

    Raises:
        UsageError: There is no such way, or it leads to an emulated device.
    """
    if via == "qemu":
        why = "is emulated: its times and its memory are not those of a board"
        raise UsageError("--via qemu", why, "give ssh HOST or adb")
    return _remote(via, python)


def _remote(via: str, python: str) -> RemoteDevice:
    way, _, host = via.partition(" ")
    if way == "ssh":
        return Ssh(host, python)
    if way == "adb":
        return Adb(python)
    raise UsageError(f"--via {way}", "is not a backend", nearest_name(way, WAYS))
