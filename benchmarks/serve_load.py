"""Load on a server: right answers, no crash and no leak among clients of every kind.

``python -m benchmarks.serve_load BUNDLE`` starts ``edgeglm serve`` on a free port of this machine, and makes 10,000
requests, or ``--requests``, over 64 connections. Other options are the server's, such as ``--slots 4``. Of 20 requests
ten have an answer that is known: five are texts as tokens and back, three are answers held to schemas of their own, and
two are questions, whose answers are compared with those that a runner gives alone. One more reads a stream slowly, two
cut the connection, and seven are among those of `benchmarks/hostile.py`. It prints how requests ended, and the
server's resident memory after each tenth of them, when the server has had nothing to do for long enough to clean up. It
ends with exit code 1 if an answer was wrong, a request failed, or memory grew by more than 2% behind the first tenth.
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
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import cycle
from pathlib import Path
from typing import Any

from benchmarks.hostile import PATH, Attack, attacks, large_attacks, posted
from edgeglm.memory import current_rss
from edgeglm.process import child
from edgeglm.runtimes.core.runner import Runner
from edgeglm.runtimes.serve.release import Idle
from edgeglm.units import format_size

DATA = Path(__file__).parents[1] / "export" / "demo" / "data"
QUESTIONS, CONNECTIONS, REQUESTS, PARTS, GROWTH = 6, 64, 10_000, 10, 0.02
JSON = {"Content-Type": "application/json"}
ANSWER_END = "</answer>"
TIMEOUT = 600
# Without a request, until the server has cleaned up: what is in memory while bodies of many megabytes come is no leak.
REST_SECONDS = Idle().round_quiet + 3
# For which a client keeps a connection that it does not use.
KEPT_SECONDS = 30
ERROR = {"message", "type", "param", "code"}
# Of 20 requests, in the order in which they are made.
KINDS = (
    "tokens", "hostile", "question", "cut", "hostile", "schema", "slow", "tokens", "hostile", "schema",
    "hostile", "tokens", "cut", "hostile", "schema", "tokens", "hostile", "question", "tokens", "hostile",
)  # fmt: skip
# Of so many hostile requests one is of many megabytes.
LARGE = 100


class Load:
    """Clients of one server.

    Args:
        address: Its host and port.
        answers: The answer to each question, by the request's body.

    Attributes:
        latencies: Seconds of each request.
        complaints: What was wrong, at most a line a request.
    """

    def __init__(self, address: tuple[str, int], answers: Mapping[bytes, str]) -> None:
        self.address, self.answers = address, answers
        self.questions = [*answers]
        self.attacks, self.large = attacks(), cycle(large_attacks())
        self.latencies, self.complaints = list[float](), list[str]()
        self._kept = list[http.client.HTTPConnection]()
        self._own = threading.local()  # a client's connection, which it keeps

    def close(self) -> None:
        """Close the connections that clients keep."""
        for connection in self._kept:
            connection.close()

    def one(self, number: int) -> str:
        """Make the request of this number, and return how it ended."""
        kind, start = KINDS[number % len(KINDS)], time.monotonic()
        try:
            getattr(self, f"_{kind}")(number)
            ended = kind
        except Exception as error:  # of a client whose server fails there are many kinds
            self._own.connection = None
            self.complaints.append(f"{number}, {kind}: {type(error).__name__} {error}"[:300])
            ended = f"{kind}: WRONG"
        self.latencies.append(time.monotonic() - start)
        return ended

    def _tokens(self, number: int) -> None:
        """Have a text of this request's own made tokens, and a text again."""
        text = f"Screen {number} of {number * 7919}"
        tokens = self._ask("/tokenize", {"prompt": text})["tokens"]
        assert (back := self._ask("/detokenize", {"tokens": tokens})["prompt"]) == text, back

    def _schema(self, number: int) -> None:
        """Have an answer that can be no other one."""
        properties = {"n": {"const": number}}
        schema = {"type": "object", "properties": properties, "required": ["n"], "additionalProperties": False}
        form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
        message = {"role": "user", "content": "Which?"}
        done = self._ask(PATH, {"messages": [message], "response_format": form, "temperature": 1})
        assert json.loads(text := done["choices"][0]["message"]["content"]) == {"n": number}, text

    def _question(self, number: int) -> None:
        body = self.questions[number % len(self.questions)]
        self._compare(body, self._ask(PATH, body)["choices"][0]["message"]["content"])

    def _slow(self, number: int) -> None:
        """Read a stream a few bytes at a time."""
        body, data = self.questions[number % len(self.questions)], b""
        with self._send(posted(body[:-1] + b', "stream": true}')) as connection:
            while piece := connection.recv(256):
                data += piece
                time.sleep(0.001)
        assert data.startswith(b"HTTP/1.1 200 "), data[:200]
        lines = [line for line in data.decode().splitlines() if line.startswith("data: {")]
        deltas = [json.loads(line[6:])["choices"][0]["delta"] for line in lines]
        self._compare(body, "".join(delta.get("content") or "" for delta in deltas))

    def _cut(self, number: int) -> None:
        """Leave in the middle of a request, before its answer, or within its stream."""
        data = posted(self.questions[number % len(self.questions)][:-1] + b', "stream": true}')
        stage = number // len(KINDS) % 3
        with self._send(data[:-99] if stage == 0 else data) as connection:
            if stage == 2:
                connection.recv(512)

    def _hostile(self, number: int) -> None:
        is_large = number // len(KINDS) % LARGE == 0
        attack = next(self.large) if is_large else self.attacks[number % len(self.attacks)]
        why = check(attack, self.address)
        assert not why, why

    def _compare(self, body: bytes, text: str) -> None:
        if text != self.answers[body]:
            raise AssertionError("ANOTHER'S answer" if text in self.answers.values() else f"another answer: {text}")

    def _ask(self, path: str, fields: object) -> Any:  # noqa: ANN401
        body = fields if isinstance(fields, bytes) else json.dumps(fields).encode()
        while True:
            connection = self._kept_connection()
            connection.request("POST", path, body, JSON)
            with connection.getresponse() as response:
                data = json.loads(response.read())
            if response.status != 429:
                break
            time.sleep(0.2)
        assert response.status == 200, f"{response.status} {data}"
        return data

    def _kept_connection(self) -> http.client.HTTPConnection:
        """Return this client's connection; a new one, if the server may have closed it by now as unused."""
        connection, now = getattr(self._own, "connection", None), time.monotonic()
        if connection is None or now - self._own.used > KEPT_SECONDS:
            connection = self._own.connection = http.client.HTTPConnection(*self.address, timeout=TIMEOUT)
            self._kept.append(connection)
        self._own.used = now
        return connection

    def _send(self, data: bytes) -> socket.socket:
        connection = socket.create_connection(self.address, timeout=TIMEOUT)
        connection.sendall(data)
        return connection


def check(attack: Attack, address: tuple[str, int]) -> str:
    """Return what is wrong with a server's response to a hostile request; nothing, if it is right."""
    data = exchange(attack.data, address, ends=0 in attack.statuses)
    status = int(data[9:12]) if data.startswith(b"HTTP/1.1 ") else 0
    body = data.partition(b"\r\n\r\n")[2]
    if status not in attack.statuses:
        return f"{attack.name}: {status}, not {attack.statuses}; {data[:300]!r}"
    if data.count(b"HTTP/1.1 ") > 1:
        return f"{attack.name}: a second request was read in it; {data[-300:]!r}"
    if b"root:" in data or b"Traceback" in data:
        return f"{attack.name}: it tells of the server; {data[-300:]!r}"
    told = json.loads(body)["error"] if status >= 400 and b"application/json" in data else dict.fromkeys(ERROR)
    if set(told) != ERROR:
        return f"{attack.name}: not OpenAI's form; {body[:300]!r}"
    return ""


def exchange(data: bytes, address: tuple[str, int], *, ends: bool) -> bytes:
    """Return all that a server sends for the bytes of a connection; `ends` says whether no more of them may come."""
    with socket.create_connection(address, timeout=TIMEOUT) as connection:
        response = b""
        try:
            connection.sendall(data)
            if ends:
                connection.shutdown(socket.SHUT_WR)
        except OSError:  # it had enough
            pass
        try:
            while piece := connection.recv(1 << 16):
                response += piece
        except ConnectionResetError:
            pass
    return response


def known_answers(bundle: Path, count: int = QUESTIONS) -> dict[bytes, str]:
    """Return requests of the demo's held-out screens, and what a runner answers to each; no two answers are alike."""
    answers: dict[bytes, str] = {}
    with Runner(bundle) as runner, (DATA / "evaluation.jsonl").open(encoding="utf-8") as file:
        for line in file:
            picture, text = json.loads(line)["messages"][0]["content"]
            data = base64.b64encode((DATA / picture["image_url"]["url"]).read_bytes()).decode()
            picture = {"type": "image_url", "image_url": {"url": f"data:image/webp;base64,{data}"}}
            messages = [{"role": "user", "content": [picture, text]}]
            answer = runner.answer(messages, max_new_tokens=64).text.partition(ANSWER_END)[0]
            if answer not in answers.values():
                answers[json.dumps({"messages": messages, "temperature": 0, "max_tokens": 64}).encode()] = answer
            if len(answers) == count:
                break
    return answers


@contextmanager
def serving(bundle: Path, options: Sequence[str]) -> Iterator[tuple[subprocess.Popen[str], tuple[str, int]]]:
    """Start a server on a free port, and give its process and address."""
    command = [sys.executable, "-m", "edgeglm", "serve", str(bundle), "--port", "0", "--queue", "128", *options]
    with child(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout
        host, port = server.stdout.readline().split("//")[1].split("/")[0].split(":")
        yield server, (host, int(port))
        if server.poll() is not None:
            raise RuntimeError(f"the server has ended with {server.returncode}")


def main() -> int:
    """Start a server, load it, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--requests", type=int, default=REQUESTS, help=f"how many (default: {REQUESTS})")
    options, others = parser.parse_known_args()
    answers, part = known_answers(options.bundle), max(1, options.requests // PARTS)
    ended, resident = Counter[str](), list[int]()
    with serving(options.bundle, others) as (server, address), ThreadPoolExecutor(CONNECTIONS) as pool:
        load, start = Load(address, answers), time.monotonic()
        for begin in range(0, options.requests, part):
            ended += Counter(pool.map(load.one, range(begin, min(begin + part, options.requests))))
            time.sleep(REST_SECONDS)
            resident.append(current_rss(server.pid))
            print(f"{ended.total():>6} requests: resident {format_size(resident[-1])}", flush=True)
        seconds = time.monotonic() - start
    for how, count in sorted(ended.items()):
        print(f"{count:>6}  {how}")
    growth = resident[-1] / resident[0] - 1
    print(f"{options.requests / seconds:.1f} requests a second, median {statistics.median(load.latencies):.2f} s")
    print(f"resident memory from {part} requests to {options.requests}: {growth:+.2%}")
    print("\n".join(load.complaints[:20]))
    return int(growth > GROWTH or bool(load.complaints))


if __name__ == "__main__":
    sys.exit(main())
