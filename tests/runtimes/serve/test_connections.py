"""Clients that are too slow to be ever done lose their connections, and others keep theirs."""

from __future__ import annotations

import asyncio
import http.client
import socket
import threading
import time
from asyncio.constants import ACCEPT_RETRY_DELAY
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

pytest.importorskip("uvicorn", reason="needs the extra serve")

import uvicorn
from starlette.types import Receive, Scope, Send

from edgeglm.runtimes.serve.connections import Connection, Server
from tests.runtimes.serve.conftest import serving

SECONDS, LARGE = 0.5, 64 << 20
HEAD = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


class Quick(Connection):
    """A connection that waits for half a second."""

    seconds = SECONDS


class App:
    """Answers with as many bytes as its path says, and notes when it is done."""

    def __init__(self) -> None:
        self.done = threading.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        size = int(scope["path"].strip("/") or 2)
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % size)]})
        for start in range(0, size, 1 << 16):
            end = min(size, start + (1 << 16))
            await send({"type": "http.response.body", "body": bytes(end - start), "more_body": end < size})
        self.done.set()


@contextmanager
def listening(app: Any) -> Iterator[tuple[str, int]]:
    """A server in a thread, and its address."""
    server = Server(uvicorn.Config(app, http=Quick, lifespan="off", log_level="critical", access_log=False))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[listener])))
        thread.start()
        try:
            yield listener.getsockname()
        finally:
            server.should_exit = True
            thread.join(30)


def is_closed(connection: socket.socket, seconds: float) -> bool:
    """Whether the server closes a connection in time, whatever it has said before."""
    connection.settimeout(seconds)
    try:
        while connection.recv(1 << 16):
            pass
        return True
    except ConnectionResetError:
        return True
    except TimeoutError:
        return False


def test_a_head_that_comes_byte_by_byte_is_not_waited_for() -> None:
    with listening(App()) as address, socket.create_connection(address) as slow:
        start = time.monotonic()
        try:
            while time.monotonic() - start < 20:
                slow.sendall(b"G")
                time.sleep(SECONDS / 8)
        except OSError:
            pass
        assert SECONDS / 2 < time.monotonic() - start < 10


def test_a_connection_without_a_word_is_closed() -> None:
    with listening(App()) as address, socket.create_connection(address) as silent:
        assert is_closed(silent, 10)


def test_a_later_head_has_a_deadline_too() -> None:
    with listening(App()) as address, socket.create_connection(address) as slow:
        slow.sendall(HEAD)
        assert slow.recv(9) == b"HTTP/1.1 "
        slow.sendall(HEAD[:9])
        assert is_closed(slow, 10)


def test_a_client_may_think_between_two_requests() -> None:
    with listening(App()) as address, closing(http.client.HTTPConnection(*address, timeout=30)) as client:
        for _ in range(2):
            client.request("GET", "/")
            assert client.getresponse().read() == bytes(2)
            time.sleep(2 * SECONDS)


def test_a_client_that_does_not_read_is_lost() -> None:
    with listening(app := App()) as address, socket.create_connection(address) as deaf:
        deaf.sendall(HEAD.replace(b"/ ", b"/%d " % LARGE, 1))
        assert app.done.wait(20)  # it no longer waits for the client


def test_a_client_that_reads_slowly_gets_everything() -> None:
    with listening(App()) as address, closing(http.client.HTTPConnection(*address, timeout=30)) as client:
        client.request("GET", f"/{8 << 20}")
        response, got = client.getresponse(), 0
        while piece := response.read(1 << 20):
            got += len(piece)
            time.sleep(SECONDS / 4)
        assert got == 8 << 20


def test_more_connections_than_files_fill_no_log_and_keep_nobody_out_for_long(exact: Path) -> None:
    """Each file that was missing for a connection had asyncio write 2,048 tracebacks."""
    files = 160
    limited = ["sh", "-c", f'ulimit -n {files}; exec "$@" 2>&1', "sh"]
    with serving(exact, within=lambda command: [*limited, *command]) as (process, url), ExitStack() as stack:
        place = urlsplit(url)
        assert place.hostname
        assert place.port
        for _ in range(2 * files):
            stack.enter_context(socket.create_connection((place.hostname, place.port)))
        time.sleep(2 * ACCEPT_RETRY_DELAY)
        opened = len([*Path(f"/proc/{process.pid}/fd").iterdir()])
        stack.close()
        with closing(http.client.HTTPConnection(place.netloc, timeout=60)) as connection:
            connection.request("GET", "/health")
            assert connection.getresponse().status == 200
        process.terminate()
        assert process.stdout is not None
        assert process.stdout.read() == b""
        assert files // 2 < opened < files
