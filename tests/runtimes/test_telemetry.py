"""No process of edgeglm reports about the device: no name is looked up, and nothing is kept in the cache folder."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# In a network namespace of its own: a resolver that knows no name, and prints those that a program asks for.
RESOLVER = """
import socket, subprocess, sys, threading
with open("/etc/resolv.conf") as file:
    server = [line.split()[1] for line in file if line.startswith("nameserver")][0]
subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
subprocess.run(["ip", "address", "add", server + "/32", "dev", "lo"], check=True)
resolver, asked = socket.socket(socket.AF_INET, socket.SOCK_DGRAM), set()
resolver.bind((server, 53))
def answer():
    while True:
        query, client = resolver.recvfrom(2048)
        labels, at = [], 12
        while query[at]:
            labels.append(query[at + 1 : at + 1 + query[at]].decode())
            at += query[at] + 1
        asked.add(".".join(labels))
        resolver.sendto(query[:2] + b"\\x81\\x83" + query[4:6] + bytes(6) + query[12:], client)
threading.Thread(target=answer, daemon=True).start()
subprocess.run(sys.argv[1:], check=True)
print(sorted(asked))
"""
# ONNX Runtime's store is there at once, and its first look-up comes after 9 to 10 seconds.
SESSION = """
import sys, time
{first}
import onnxruntime
from edgeglm.runtimes.engines.ort.options import PRODUCT
session = onnxruntime.InferenceSession(PRODUCT, providers=["CPUExecutionProvider"])
time.sleep({seconds})
"""


def session(cache: Path, first: str, *, seconds: int = 0, prefix: tuple[str, ...] = ()) -> str:
    """What a process prints that opens a session, where nothing forbids telemetry but edgeglm."""
    silencers = ("ORT_DISABLE_TELEMETRY", "ORT_RUNNING_UNIT_TESTS", "CI")
    environment = {name: value for name, value in os.environ.items() if name not in silencers}
    environment |= {"XDG_CACHE_HOME": str(cache)}
    command = [*prefix, sys.executable, "-c", SESSION.format(first=first, seconds=seconds)]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    "first",
    ["import edgeglm.runtimes.core.runner", "import edgeglm.cli.main", "import edgeglm.runtimes.program"],
)
def test_nothing_is_kept_about_the_device(first: str, tmp_path: Path) -> None:
    session(tmp_path, first)
    assert not list(tmp_path.rglob("*"))


def test_no_name_is_looked_up_without_a_network(tmp_path: Path) -> None:
    if os.geteuid() or not all(map(shutil.which, ("unshare", "ip"))):
        pytest.skip("a network namespace takes root, unshare and ip")
    prefix = ("unshare", "--net", sys.executable, "-c", RESOLVER)
    if subprocess.run([*prefix, "true"], capture_output=True, check=False).returncode:
        pytest.skip("no network namespace can be made here")
    assert session(tmp_path, "import edgeglm.runtimes.core.runner", seconds=12, prefix=prefix) == "[]\n"


def test_processes_of_edgeglm_hand_it_on() -> None:
    report = "import os, edgeglm, subprocess; subprocess.run(['env'], check=True)"
    environment = {name: value for name, value in os.environ.items() if "TELEMETRY" not in name}
    done = subprocess.run(
        [sys.executable, "-c", report], env=environment, cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert {"ORT_DISABLE_TELEMETRY=1", "HF_HUB_DISABLE_TELEMETRY=1"} <= set(done.stdout.splitlines())
