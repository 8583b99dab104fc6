"""Load on a server: right answers, no crash and no leak among clients of every kind.

``python -m benchmarks.serve_load BUNDLE`` starts ``edgeglm serve`` on a free port of this machine, and asks it 10,000
times, or ``--requests``, over 64 connections. Each answer is compared with what a runner answers alone. Of 16 requests
one reads its stream slowly, one cuts the connection, and four are malformed: no JSON, JSON that is nested or huge, a
wrong field, an image that is none. It prints how requests ended, and the server's resident memory after a tenth of
them and at the end; it ends with exit code 1 if an answer was wrong, a request failed, or memory grew by more than 2%.
"""

from __future__ import annotations

import argparse
import base64
import http.client
import json
import socket
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

from edgeglm.memory import current_rss
from edgeglm.process import child
from edgeglm.runtimes.core.runner import Runner
from edgeglm.units import format_size

DATA = Path(__file__).parents[1] / "export" / "demo" / "data"
QUESTIONS, CONNECTIONS, REQUESTS, GROWTH = 12, 64, 10_000, 0.02
PATH, JSON = "/v1/chat/completions", {"Content-Type": "application/json"}
ANSWER_END = "</answer>"
NO_IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
MALFORMED = (
    b"{",
    b'{"messages": ' + b"[" * 5000,
    b'{"messages": [], "max_tokens": ' + b"9" * 5000 + b"}",
    json.dumps({"messages": [{"role": "user", "content": [NO_IMAGE, {"type": "text", "text": "x"}]}]}).encode(),
)


class Load:
    """Clients of one server; `expected` are the answers by question."""

    def __init__(self, host: str, port: int, expected: dict[bytes, str]) -> None:
        self.address, self.expected = (host, port), expected
        self.bodies = [*expected]
        self.latencies: list[float] = []

    def one(self, number: int) -> str:
        """Make the request of this number, and return how it ended."""
        body, start = self.bodies[number % len(self.bodies)], time.monotonic()
        kinds: dict[int, Callable[[bytes], str]] = {0: self._slow, 1: self._cut}
        kinds |= dict.fromkeys(range(2, 6), lambda _: self._malformed(number))
        try:
            ended = kinds.get(number % 16, self._plain)(body)
        except (OSError, http.client.HTTPException) as error:
            return f"failed: {type(error).__name__}"
        self.latencies.append(time.monotonic() - start)
        return ended

    def _plain(self, body: bytes) -> str:
        while True:
            status, data = self._post(body)
            if status != 429:
                break
            time.sleep(0.2)
        if status != 200:
            return f"failed: {status}"
        text = json.loads(data)["choices"][0]["message"]["content"]
        return "right" if text == self.expected[body] else "wrong answer"

    def _malformed(self, number: int) -> str:
        status, _ = self._post(MALFORMED[number % len(MALFORMED)])
        return "refused" if status in (400, 429) else f"failed: malformed, {status}"

    def _slow(self, body: bytes) -> str:
        """Read a stream a few bytes at a time."""
        with self._send(body[:-1] + b', "stream": true}') as connection:
            data = b""
            while piece := connection.recv(64):
                data += piece
                time.sleep(0.001)
        if b" 429 " in data[:32]:
            return "refused"
        lines = [line for line in data.decode().splitlines() if line.startswith("data: {")]
        deltas = [json.loads(line[6:])["choices"][0]["delta"] for line in lines]
        text = "".join(delta.get("content") or "" for delta in deltas)
        return "right, read slowly" if text == self.expected[body] else "wrong answer"

    def _cut(self, body: bytes) -> str:
        with self._send(body):
            time.sleep(0.01)
        return "cut"

    def _post(self, body: bytes) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection(*self.address, timeout=600)
        try:
            connection.request("POST", PATH, body, JSON)
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    def _send(self, body: bytes) -> socket.socket:
        connection = socket.create_connection(self.address, timeout=600)
        head = f"POST {PATH} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/json\r\n"
        connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        return connection


def questions() -> list[bytes]:
    """Return requests of the demo's held-out screens, every fifth without its image."""
    bodies = []
    with (DATA / "evaluation.jsonl").open(encoding="utf-8") as file:
        for number, line in enumerate(islice(file, QUESTIONS)):
            picture, text = json.loads(line)["messages"][0]["content"]
            data = base64.b64encode((DATA / picture["image_url"]["url"]).read_bytes()).decode()
            picture = {"type": "image_url", "image_url": {"url": f"data:image/webp;base64,{data}"}}
            content = [text] if number % 5 == 0 else [picture, text]
            fields = {"messages": [{"role": "user", "content": content}], "temperature": 0, "max_tokens": 64}
            bodies.append(json.dumps(fields).encode())
    return bodies


def answers(bundle: Path) -> dict[bytes, str]:
    """Return what a runner answers to each of them, as a server shows it."""
    with Runner(bundle) as runner:
        return {
            body: runner.answer(json.loads(body)["messages"], max_new_tokens=64).text.partition(ANSWER_END)[0]
            for body in questions()
        }


def main() -> int:
    """Start a server, load it, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--requests", type=int, default=REQUESTS, help=f"how many (default: {REQUESTS})")
    options = parser.parse_args()
    expected, early = answers(options.bundle), options.requests // 10
    command = [sys.executable, "-m", "edgeglm", "serve", str(options.bundle), "--port", "0", "--queue", "128"]
    with child(command, stdout=subprocess.PIPE, text=True) as server, ThreadPoolExecutor(CONNECTIONS) as pool:
        assert server.stdout
        host, port = server.stdout.readline().split("//")[1].split("/")[0].split(":")
        load, start = Load(host, int(port), expected), time.monotonic()
        ended = Counter(pool.map(load.one, range(early)))
        before = current_rss(server.pid)
        ended += Counter(pool.map(load.one, range(early, options.requests)))
        after, seconds = current_rss(server.pid), time.monotonic() - start
    for how, count in sorted(ended.items()):
        print(f"{count:>6}  {how}")
    growth = after / before - 1
    print(f"{options.requests / seconds:.1f} requests a second, median {statistics.median(load.latencies):.2f} s")
    print(f"resident {format_size(before)} after {early}, {format_size(after)} after all: {growth:+.2%}")
    return int(growth > GROWTH or any(how.startswith(("wrong", "failed")) for how in ended))


if __name__ == "__main__":
    sys.exit(main())
