"""The server as a program: hostile requests, clients that go, keys, signals, wrong options."""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

pytest.importorskip("uvicorn", reason="needs the extra serve")

from edgeglm.process import child
from tests.cli.commands import check_failure, end, start
from tests.runtimes.serve.conftest import question, serving

JSON = {"Content-Type": "application/json"}


def post(address: str, path: str, body: bytes, headers: dict[str, str] = JSON) -> tuple[int, dict[str, object]]:
    """Return status and JSON of a POST; every error has OpenAI's form."""
    request = urllib.request.Request(address.removesuffix("/v1") + path, body, headers)
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        fields = json.load(error)
        assert set(fields["error"]) == {"message", "type", "param", "code"}
        return error.code, fields["error"]


def get(address: str, path: str) -> str:
    with urllib.request.urlopen(address.removesuffix("/v1") + path, timeout=60) as response:
        return str(response.read().decode())


def chat(**more: object) -> bytes:
    return json.dumps({"messages": question("Select OK"), "temperature": 0, "max_tokens": 2, **more}).encode()


def test_tokens_and_back(address: str) -> None:
    _, found = post(address, "/tokenize", json.dumps({"prompt": "Select OK"}).encode())
    assert found["count"] == len(found["tokens"])  # type: ignore[arg-type]
    _, text = post(address, "/detokenize", json.dumps({"tokens": found["tokens"]}).encode())
    assert text == {"prompt": "Select OK"}
    assert post(address, "/detokenize", b'{"tokens": [1000000]}')[0] == 400
    _, longer = post(address, "/tokenize", json.dumps({"messages": question("Select OK")}).encode())
    assert longer["count"] > found["count"]  # type: ignore[operator]


def test_it_says_how_it_is(address: str) -> None:
    assert json.loads(get(address, "/health")) == {"status": "ok"}
    assert json.loads(get(address, "/ready"))["ready"] is True
    post(address, "/v1/chat/completions", chat())
    page = get(address, "/metrics")
    assert 'edgeglm_requests_total{path="/v1/chat/completions",status="200"}' in page
    assert "edgeglm_resident_bytes " in page


def connect(address: str, body: bytes, data: bytes = b"") -> socket.socket:
    """Send a request on a connection of its own, or other bytes, and leave its answer unread."""
    host, port = address.removeprefix("http://").removesuffix("/v1").split(":")
    connection = socket.create_connection((host, int(port)), timeout=60)
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/json\r\n"
    connection.sendall(data or f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    return connection


def whole(connection: socket.socket) -> str:
    """Return all that comes."""
    pieces = []
    while piece := connection.recv(1 << 16):
        pieces.append(piece)
    return b"".join(pieces).decode()


def running(address: str) -> float:
    (line,) = [line for line in get(address, "/metrics").splitlines() if line.startswith("edgeglm_requests_running ")]
    return float(line.split()[1])


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_goes_stops_the_work(address: str, stream: bool) -> None:
    body = chat(stream=stream, max_tokens=3000, messages=question("Tell me", 1), stop=["never"], temperature=2.0)
    with connect(address, body):
        deadline = time.monotonic() + 30
        while not running(address) and time.monotonic() < deadline:
            time.sleep(0.01)
    while running(address) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert running(address) == 0


def check_preflight(address: str, page: str) -> None:
    """Ask as a browser does before a page's first request: it has no key, and only the page that was named may ask."""
    asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,content-type"}
    url = f"{address}/chat/completions"
    with urllib.request.urlopen(urllib.request.Request(url, None, {**asked, "Origin": page}, method="OPTIONS")) as told:
        assert told.headers["Access-Control-Allow-Origin"] == page
        assert "authorization" in told.headers["Access-Control-Allow-Headers"]
    for origin, status in ((page, 401), ("http://evil.example", 401)):
        with pytest.raises(urllib.error.HTTPError) as caught:  # a page reads errors too, where it may read anything
            urllib.request.urlopen(urllib.request.Request(url, chat(), {**JSON, "Origin": origin}))
        assert caught.value.code == status
        assert (caught.value.headers["Access-Control-Allow-Origin"] == page) == (origin == page)
        caught.value.close()
    with pytest.raises(urllib.error.HTTPError, match="400") as caught:
        urllib.request.urlopen(
            urllib.request.Request(url, None, {**asked, "Origin": "http://evil.example"}, method="OPTIONS")
        )
    caught.value.close()


def test_keys_are_asked_for_everywhere_but_where_health_is(exact: Path, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("# of the phone\nfirst\n\nsecond\n")
    page = "http://localhost:3000"
    with serving(exact, "--api-key-file", keys, "--cors", page) as (_, address):
        check_preflight(address, page)
        assert post(address, "/v1/chat/completions", chat())[0] == 401
        with pytest.raises(urllib.error.HTTPError) as caught:
            get(address, "/v1/models")
        assert caught.value.headers["WWW-Authenticate"] == "Bearer"
        caught.value.close()
        assert post(address, "/v1/chat/completions", chat(), {**JSON, "Authorization": "Bearer wrong"})[0] == 401
        for key in ("first", "second"):
            assert post(address, "/v1/chat/completions", chat(), {**JSON, "Authorization": f"Bearer {key}"})[0] == 200
        assert json.loads(get(address, "/health")) == {"status": "ok"}


def test_a_full_queue_is_a_429_that_says_when(exact: Path) -> None:
    with serving(exact, "--queue", "1") as (_, address):
        body = chat(max_tokens=200, temperature=2.0, stream=True, stop=["never"], n=16)
        connections = [connect(address, body) for _ in range(4)]
        # Two are taken, one of them to wait; it is for the others to say so at once.
        ready, *_ = select.select(connections, [], [], 60)
        statuses = [whole(connection) for connection in ready if b"429" in connection.recv(64, socket.MSG_PEEK)]
        for connection in connections:
            connection.close()
    assert statuses
    assert all("retry-after: 2" in status.lower() and "queue_full" in status for status in statuses)


def test_sigterm_lets_the_running_request_finish(exact: Path) -> None:
    with serving(exact) as (process, address):
        with connect(address, chat(max_tokens=150, temperature=2.0, seed=1, stream=True)) as connection:
            assert connection.recv(1)  # it has begun
            os.kill(process.pid, signal.SIGTERM)
            assert "data: [DONE]" in whole(connection)
        assert process.wait(30) == 0


@pytest.mark.parametrize("signals", [1, 2])
def test_what_is_not_finished_in_time_is_told(exact: Path, signals: int) -> None:
    """One request runs and streams, one waits, and one is not whole; nothing of it is a traceback."""
    pytest.importorskip("llguidance")
    drain = "1" if signals == 1 else "60"
    with serving(exact, "--drain", drain, within=lambda command: ["sh", "-c", 'exec "$@" 2>&1', "sh", *command]) as (
        process, address,
    ):  # fmt: skip
        schema = {"type": "object", "properties": {"a": {"type": "string", "minLength": 20_000}}, "required": ["a"]}
        form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
        body = chat(max_tokens=8000, response_format=form, stream=True)
        half = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n{"
        with (
            connect(address, body, half) as sending_one,
            connect(address, body) as running_one,
            connect(address, chat(n=16, max_tokens=500)) as waiting_one,
        ):
            assert running_one.recv(1)
            while "edgeglm_requests_waiting 1.0" not in get(address, "/metrics"):
                time.sleep(0.05)
            for _ in range(signals):
                process.terminate()
                time.sleep(0.2)
            assert '"code":"stopping"' in whole(running_one)[-300:]
            for told in (whole(waiting_one), whole(sending_one)):
                assert told.startswith("HTTP/1.1 503 ")
                assert json.loads(told.rpartition("\n")[2])["error"]["code"] == "stopping"
        assert process.wait(30) == 0
        assert process.stdout is not None
        assert b"Traceback" not in process.stdout.read()


def test_ctrl_c_ends_it(exact: Path) -> None:
    with serving(exact) as (process, _):
        os.kill(process.pid, signal.SIGINT)
        assert process.wait(30) == 130


def test_a_bundle_is_released_when_nobody_asks_and_loaded_again(exact: Path) -> None:
    with serving(exact, "--idle", "1") as (_, address):
        deadline = time.monotonic() + 30
        while "edgeglm_bundles_loaded 0.0" not in get(address, "/metrics") and time.monotonic() < deadline:
            time.sleep(0.2)
        assert "edgeglm_bundles_loaded 0.0" in get(address, "/metrics")
        assert post(address, "/v1/chat/completions", chat())[0] == 200


def test_two_bundles_are_told_apart_by_name(exact: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(exact, tmp_path / "second"))
    with serving(exact, other) as (_, address):
        assert post(address, "/v1/chat/completions", chat(model="second"))[1]["model"] == "second"
        status, error = post(address, "/v1/chat/completions", chat(model="third"))
        assert (status, error["param"]) == (404, "model")
        assert "second" in str(error["message"])


def test_run_pyz_serves_too(exact: Path, tmp_path: Path) -> None:
    command = [sys.executable, "run.pyz", "serve", "--port", "0"]
    with child(command, cwd=exact, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        address = process.stdout.readline().decode().split()[-1]
        assert post(address, "/v1/chat/completions", chat())[0] == 200


def test_without_its_extra_it_says_in_one_line_what_to_install(exact: Path) -> None:
    start_without = "import runpy, sys; sys.modules['uvicorn'] = None; sys.argv = ['run.pyz', 'serve']; "
    command = [sys.executable, "-c", start_without + "runpy.run_path('run.pyz', run_name='__main__')"]
    done = subprocess.run(command, cwd=exact, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr.startswith("edgeglm: run.pyz serve: needs uvicorn, which is not installed; run pip install ")
    assert "starlette uvicorn prometheus-client" in done.stderr
    assert done.stderr.count("\n") == 1


def test_wrong_options_are_one_line(exact: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        check_failure(end(start("serve", exact, "--port", port)), 2, "cannot be listened on")
    check_failure(end(start("serve", tmp_path)), 2, "")
    check_failure(end(start("serve", exact, exact)), 2, "clients choose by name")
    check_failure(end(start("serve", exact, "--port", "x")), 2, "is no port")
    check_failure(end(start("serve", exact, "--cors", "localhost")), 2, "is no origin")
    check_failure(end(start("serve", exact, "--api-key-file", tmp_path / "none")), 2, "cannot be read")
    check_failure(end(start("serve", exact, "--max-ram", "1MiB")), 5, "too little")
    check_failure(end(start("serve", exact, "--max-ram", "")), 2, "--max-ram '': is not a size")
    check_failure(end(start("serve", exact, "--idle", "often=0")), 2, "'often=0' is none of often=…")
    check_failure(end(start("serve", exact, "--idle", "0")), 2, "argument --idle: '0' is no number of seconds")
    check_failure(end(start("serve", exact, "--shares", "sound=1")), 2, "'sound=1' is none of speech=…")
    check_failure(end(start("serve", exact, "--shares", "text=1,,")), 2, "'' of 'text=1,,' is none of speech=…")
