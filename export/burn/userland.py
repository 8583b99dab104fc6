"""A 64-bit Arm user land on an x86-64 machine: Debian's Python and the runner's wheels for it, under qemu-user.

Nothing is installed and root is not needed: apt works in a folder of its own, and packages are only unpacked. All of
it, about 250 MB, is kept in ``$XDG_CACHE_HOME/edgeglm/aarch64`` and made anew when the recipe changes.

qemu 7.2, which Debian 12 has, crashes ONNX Runtime; 10 comes from its backports, as one static program.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import platform
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib import metadata
from pathlib import Path

from edgeglm.cache import cache_folder
from edgeglm.errors import UnsupportedError
from edgeglm.exits import DISK_IS_FULL
from edgeglm.files import open_regular
from edgeglm.process import Ran, run_program

MIRROR = "http://deb.debian.org/debian"
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
DEBIAN = ("qemu-user:amd64/bookworm-backports", "python3.11:arm64", "libstdc++6:arm64")
PYTHON = ("--python-version", "3.11", *(f"--platform=manylinux_2_{minor}_aarch64" for minor in (28, 27, 17)))
TOOLS = ("apt-get", "dpkg", "dpkg-deb")
CPU = "cortex-a76"  # of a Raspberry Pi 5
PAGE = 4096
MAX_STAMP = 1024


class Userland:
    """A user land that is there.

    Args:
        folder: Where `set_up` put it.
        site: Where its wheels are.
    """

    def __init__(self, folder: Path, site: Path) -> None:
        self.folder, self.site = folder, site

    def python(self, arguments: Sequence[str | Path], memory: int | None = None, cwd: Path | None = None) -> Ran:
        """Run its Python, in at most `memory` bytes of address space where that is given."""
        root, limit = self.folder / "root", ["-R", str(memory // PAGE * PAGE)] if memory else []
        emulator = [str(self.folder / "qemu-aarch64"), *limit, "-cpu", CPU, "-L", str(root)]
        environment = {"PYTHONPATH": str(self.site), "PATH": os.environ["PATH"]}
        command = [*emulator, str(root / "usr/bin/python3.11"), *map(str, arguments)]
        return run_program(command, env=environment, cwd=cwd)


def set_up(wheels: Sequence[str]) -> Userland:
    """Return the user land with these wheels, in the versions that are installed here; from the cache, or made there.

    Raises:
        UnsupportedError: The packages cannot be had.
    """
    cache = cache_folder()
    if cache is None:
        raise _unavailable("there is no home folder to keep it in", "set XDG_CACHE_HOME")
    try:
        return _set_up(cache, sorted(map(_pinned, wheels)))
    except OSError as error:
        if error.errno in DISK_IS_FULL:
            raise
        why = f"{error.filename or cache} cannot be used: {error.strerror or error}"
        raise _unavailable(why, "set XDG_CACHE_HOME to a folder that can be written") from error


def _set_up(cache: Path, pinned: Sequence[str]) -> Userland:
    folder = cache / "aarch64"
    site = folder / f"site-{hashlib.sha256(' '.join(pinned).encode()).hexdigest()[:16]}"
    recipe = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()
    with _locked(cache / "aarch64.lock"):
        stamp = folder / "recipe"
        if _read(stamp) != recipe.encode():
            if folder.is_dir():
                shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            _unpack_debian(folder)
            stamp.write_text(recipe)
        if not site.is_dir():
            _install(pinned, site)
    return Userland(folder, site)


def _read(stamp: Path) -> bytes:
    """Return what a file says, nothing where it is none."""
    with suppress(OSError), open_regular(stamp) as stream:
        return stream.read(MAX_STAMP)
    return b""


def _pinned(wheel: str) -> str:
    """Return a requirement of the version that is here, so that both sides compute with the same code."""
    with suppress(metadata.PackageNotFoundError):
        return f"{wheel}=={metadata.version(wheel)}"
    return wheel


@contextmanager
def _locked(file: Path) -> Iterator[None]:
    file.parent.mkdir(parents=True, exist_ok=True)
    lock = os.open(file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


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
    for name in ("qemu-aarch64", "qemu-x86_64"):  # the latter is for CPUs without VNNI
        shutil.move(apt / "qemu/usr/bin" / name, folder)
    shutil.rmtree(apt)


def _check_host() -> None:
    if platform.machine() != "x86_64":
        raise _unavailable("its emulator is for x86-64", "run the bundle as it is: edgeglm run BUNDLE")
    if missing := [tool for tool in TOOLS if not shutil.which(tool)]:
        raise _unavailable(f"needs {' and '.join(missing)}, which only Debian and its kin have", "take --via ssh HOST")
    if not KEYRING.is_file():
        raise _unavailable(f"needs {KEYRING}", "run apt install debian-archive-keyring")


def _configure_apt(apt: Path) -> Path:
    """Return a configuration of apt, in which it knows of no installed package, and writes nowhere but in `apt`."""
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


def _install(requirements: Sequence[str], site: Path) -> None:
    """Install wheels with what they need, as pip would there; the folder appears when they are whole."""
    partial = site.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--target", str(partial)]
    _run([*pip, "--no-compile", "--only-binary=:all:", *PYTHON, *requirements])
    partial.rename(site)


def _run(command: Sequence[str | Path], environment: Mapping[str, str] | None = None) -> None:
    ran = run_program(list(map(str, command)), env=environment)
    if ran.code:
        lines = [line for line in ran.err.splitlines() if line.strip()]
        why = f"{' '.join(map(str, command[:4]))} ended with {ran.code}: {lines[-1] if lines else 'no word'}"
        raise _unavailable(why, "the first time it takes a network: connect, and run it again")


def _unavailable(why: str, remedy: str) -> UnsupportedError:
    return UnsupportedError("qemu", why, remedy)
