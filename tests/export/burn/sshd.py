"""A real sshd of this machine, on a port of its own, with keys and a home of its own."""

from __future__ import annotations

import getpass
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

HOST = "board"
# sbin is not on everybody's path.
SBIN = "/usr/local/sbin:/usr/sbin:/sbin"


@dataclass(frozen=True)
class Server:
    """Where its user's home is, and a path with an `ssh` that knows the server as HOST."""

    home: Path
    path: str


def missing() -> str | None:
    """Why there can be no server here."""
    tools = ("ssh", "ssh-keygen")
    if lacking := [tool for tool in tools if not shutil.which(tool)] + ([] if sshd() else ["sshd"]):
        return f"needs {' and '.join(lacking)}: apt install openssh-client openssh-server"
    return None


def sshd() -> str | None:
    return shutil.which("sshd", path=f"{os.environ['PATH']}:{SBIN}")


@contextmanager
def serve(folder: Path) -> Iterator[Server]:
    """The server, while the context lasts."""
    port, home, log = free_port(), folder / "home", folder / "log"
    home.mkdir()
    for name in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name], check=True)
    known = f"[127.0.0.1]:{port} {(folder / 'host.pub').read_text()}"
    (folder / "known_hosts").write_text(known)
    (folder / "sshd_config").write_text(
        f"ListenAddress 127.0.0.1\nPort {port}\nHostKey {folder}/host\nAuthorizedKeysFile {folder}/user.pub\n"
        f"PidFile none\nStrictModes no\nPasswordAuthentication no\nKbdInteractiveAuthentication no\n"
        f"SetEnv HOME={home}\n"
    )
    (folder / "ssh_config").write_text(
        f"Host {HOST}\n  HostName 127.0.0.1\n  Port {port}\nHost *\n  User {getpass.getuser()}\n"
        f"  IdentityFile {folder}/user\n  IdentitiesOnly yes\n  UserKnownHostsFile {folder}/known_hosts\n"
        "  BatchMode yes\n"
    )
    if os.geteuid() == 0:  # where it separates privileges
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
    bin_folder = folder / "bin"
    bin_folder.mkdir()
    # The user's own configuration cannot be moved by HOME.
    wrapper = bin_folder / "ssh"
    wrapper.write_text(f'#!/bin/sh\nexec {shutil.which("ssh")} -F {folder}/ssh_config "$@"\n')
    wrapper.chmod(0o755)
    process = subprocess.Popen([str(sshd()), "-D", "-f", folder / "sshd_config", "-E", log])
    try:
        wait_for(port, process, log)
        yield Server(home, f"{bin_folder}:{os.environ['PATH']}")
    finally:
        process.terminate()
        process.wait()


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


def wait_for(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and process.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            time.sleep(0.05)
    raise RuntimeError(f"sshd does not listen: {log.read_text()}")
