"""A budget holds bodies too: how it is divided, and that large ones do not break it."""

from __future__ import annotations

import http.client
import json
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from urllib.parse import urlsplit

import pytest

pytest.importorskip("uvicorn", reason="needs the extra serve")

from edgeglm.bundle import load_bundle
from edgeglm.errors import BudgetError
from edgeglm.memory import peak_rss
from edgeglm.runtimes.core.window import Window
from edgeglm.runtimes.serve.bodies import MAX_BYTES
from edgeglm.runtimes.serve.budget import COPIES, LEAST, SHARE, divide
from tests.runtimes.serve.conftest import question, serving

MIB = 1 << 20
BUDGET = 180 * MIB


def test_bodies_have_a_share_that_the_bundles_leave(exact: Path) -> None:
    manifest = load_bundle(exact).manifest
    assert divide(None, [manifest], None, is_shared=True) == (None, MAX_BYTES)
    rest, most = divide(64 << 30, [manifest], None, is_shared=True)
    assert (rest, most) == ((64 << 30) - COPIES * MAX_BYTES, MAX_BYTES)
    rest, most = divide(BUDGET, [manifest], None, is_shared=True)
    assert (rest, most) == (BUDGET - BUDGET // SHARE, BUDGET // SHARE // COPIES)
    least = next(size for size in range(64 * MIB, BUDGET, MIB) if is_enough(exact, size))
    rest, most = divide(least, [manifest], None, is_shared=True)
    assert rest is not None
    assert is_enough(exact, rest)
    assert most == LEAST
    assert divide(MIB, [manifest], None, is_shared=True) == (MIB, LEAST)  # which the runner refuses


def is_enough(bundle: Path, budget: int) -> bool:
    try:
        Window(load_bundle(bundle).manifest, None, budget, is_shared=True)
    except BudgetError:
        return False
    return True


def test_large_bodies_do_not_break_a_budget(exact: Path) -> None:
    fields = {"messages": question("Select OK"), "max_tokens": 1}
    bodies = [json.dumps({**fields, "unknown": "x" * size}).encode() for size in (1 * MIB, 12 * MIB, 1000)]

    def post(body: bytes) -> int:
        with closing(http.client.HTTPConnection(urlsplit(url).netloc, timeout=120)) as connection:
            try:
                connection.request("POST", "/v1/chat/completions", body)
                with connection.getresponse() as response:
                    return response.status
            except ConnectionError:  # it was told before it had sent all
                return 413

    def ask(number: int) -> int:
        """Ask once; the small ones again, as clients do, while large ones that come in take all the room."""
        status, again = post(bodies[number % 3]), 100
        while status == 429 and number % 3 == 2 and again:
            time.sleep(0.05)
            status, again = post(bodies[number % 3]), again - 1
        return status

    with serving(exact, "--slots", "2", "--max-ram", "180MiB") as (process, url), ThreadPoolExecutor(24) as pool:
        statuses = Counter(pool.map(ask, range(48)))
        assert process.poll() is None
        assert peak_rss(process.pid) <= 1.05 * BUDGET
    assert statuses.keys() <= {200, 413, 429}
    assert statuses[413] == 16
    assert statuses[200] >= 16
