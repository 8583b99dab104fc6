"""A 64-bit Arm user land on an x86 machine: Debian's Python and the runner's wheels for it, under qemu-user.

Nothing is installed and root is not needed: apt works in a folder of its own, and packages are only unpacked. All of
it, about 250 MB, is kept in ``$XDG_CACHE_HOME/edgeglm/arm`` and made anew when the recipe changes.

qemu 7.2, which Debian 12 has, crashes ONNX Runtime; 10 comes from its backports, as one static program.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from edgeglm.export.pyz import WHEELS

CONSTRAINTS = Path(__file__).parents[2] / "constraints.txt"
MIRROR = "http://deb.debian.org/debian"
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
DEBIAN = ("qemu-user:amd64/bookworm-backports", "python3.11:arm64", "libstdc++6:arm64")
PYTHON = ("--python-version", "3.11", *(f"--platform=manylinux_2_{minor}_aarch64" for minor in (28, 27, 17)))
TOOLS = ("apt-get", "dpkg", "dpkg-deb")
LITERT = "ai-edge-litert"
CPU = "cortex-a76"  # of a Raspberry Pi 5


class Unavailable(Exception):
    """The user land cannot be had here; says why."""


class Userland:
    """A user land that is there.

    Args:
        folder: Where `set_up` put it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def python(self, arguments: Sequence[str | Path], memory: int | None = None) -> subprocess.CompletedProcess[str]:
        """Run its Python, in at most `memory` bytes of address space where that is given."""
        root, limit = self.folder / "root", ["-R", str(memory)] if memory else []
        emulator = [str(self.folder / "qemu-aarch64"), *limit, "-cpu", CPU, "-L", str(root)]
        environment = {"PYTHONPATH": str(self.folder / "site"), "PATH": os.environ["PATH"]}
        command = [*emulator, str(root / "usr/bin/python3.11"), *map(str, arguments)]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def set_up() -> Userland:
    """The user land, from the cache folder or made there.

    Raises:
        Unavailable: The packages cannot be had.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edgeglm"
    folder, recipe = cache / "arm", hashlib.sha256(Path(__file__).read_bytes() + CONSTRAINTS.read_bytes()).hexdigest()
    cache.mkdir(parents=True, exist_ok=True)
    with open(cache / "arm.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        stamp = folder / "recipe"
        if not (stamp.is_file() and stamp.read_text() == recipe):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            _unpack_debian(folder)
            _install_wheels(folder / "site")
            stamp.write_text(recipe)
    return Userland(folder)


def _unpack_debian(folder: Path) -> None:
    _check_host()
    apt = folder / "apt"
    environment = {**os.environ, "APT_CONFIG": str(_configure_apt(apt)), "LC_ALL": "C"}
    _run(["apt-get", "update", "--error-on=any"], environment)
    _run(["apt-get", "install", "--yes", "--download-only", "--no-install-recommends", *DEBIAN], environment)
    (folder / "root").mkdir()
    for package in sorted((apt / "cache/archives").glob("*_arm64.deb")):
        _run(["dpkg", "--extract", package, folder / "root"])
    (emulator,) = (apt / "cache/archives").glob("qemu-user_*.deb")
    _run(["dpkg", "--extract", emulator, apt / "qemu"])
    shutil.move(apt / "qemu/usr/bin/qemu-aarch64", folder)
    shutil.rmtree(apt)


def _check_host() -> None:
    if missing := [tool for tool in TOOLS if not shutil.which(tool)]:
        raise Unavailable(f"needs {' and '.join(missing)}, which only Debian and its kin have")
    if not KEYRING.is_file():
        raise Unavailable(f"needs {KEYRING}: apt install debian-archive-keyring")


def _configure_apt(apt: Path) -> Path:
    """A configuration of apt, in which it knows of no installed package, and writes nowhere but in `apt`."""
    for name in ("state/lists/partial", "cache/archives/partial"):
        (apt / name).mkdir(parents=True)
    (apt / "status").touch()
    suites = ("bookworm", "bookworm-backports")
    (apt / "sources.list").write_text("".join(f"deb [signed-by={KEYRING}] {MIRROR} {suite} main\n" for suite in suites))
    configuration = apt / "apt.conf"
    configuration.write_text(
        f'Dir::State "{apt}/state"; Dir::State::status "{apt}/status"; Dir::Cache "{apt}/cache";\n'
        f'Dir::Etc::sourcelist "{apt}/sources.list"; Dir::Etc::sourceparts "-"; Dir::Etc::preferencesparts "-";\n'
        'APT::Architecture "amd64"; APT::Architectures { "amd64"; "arm64"; }; APT::Sandbox::User "root";\n'
    )
    return configuration


def _install_wheels(site: Path) -> None:
    """The wheels that run.pyz asks for and LiteRT, with what they need, as pip would install them there."""
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--target", str(site)]
    _run([*pip, "--constraint", CONSTRAINTS, "--no-compile", "--only-binary=:all:", *PYTHON, *WHEELS.split(), LITERT])


def _run(command: Sequence[str | Path], environment: Mapping[str, str] | None = None) -> None:
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        why = [line for line in done.stderr.splitlines() if line.strip()]
        raise Unavailable(f"{' '.join(map(str, command[:3]))} ended with {done.returncode}: {why[-1] if why else ''}")
