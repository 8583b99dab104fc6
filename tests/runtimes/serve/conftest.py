"""A server of the demo's bundle in a process of its own, as a user starts it."""

from __future__ import annotations

import base64
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from edgeglm.process import child
from tests.cli.commands import ROOT

SCREENS = ROOT / "export/demo/data/evaluation"


@contextmanager
def serving(
    *arguments: object, within: Callable[[list[str]], list[str]] = list
) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """Start a server on a free port, by a command as `within` makes it; give its process and address, and end it."""
    command = [sys.executable, "-m", "edgeglm", "serve", *map(str, arguments), "--port", "0"]
    with child(within(command), cwd=ROOT, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        line = process.stdout.readline().decode()
        assert line.startswith("serving "), line
        yield process, line.split()[-1]
        process.terminate()
        process.wait(30)


@pytest.fixture(scope="module")
def address(exact: Path) -> Iterator[str]:
    """The address of a server."""
    with serving(exact) as (_, url):
        yield url


def question(text: str, screen: int | None = None) -> list[dict[str, Any]]:
    """A user's message, with one of the demo's screens or without."""
    if screen is None:
        return [{"role": "user", "content": text}]
    data = base64.b64encode((SCREENS / f"{screen:04d}.webp").read_bytes()).decode()
    picture = {"type": "image_url", "image_url": {"url": f"data:image/webp;base64,{data}"}}
    return [{"role": "user", "content": [picture, {"type": "text", "text": text}]}]
