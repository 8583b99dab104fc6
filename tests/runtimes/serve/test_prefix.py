"""A server's prefix: shared by all connections, and there again after a restart."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("uvicorn", reason="needs the extra serve")
pytest.importorskip("httpx")

import httpx

from edgeglm.blocks import KIND
from tests.runtimes.serve.conftest import question, serving

RULES = "You tap what you are told to tap, and say where. " * 40


def cached(url: str, system: str, user: Sequence[dict[str, Any]]) -> int:
    """Ask over a connection of its own, and return how many tokens of the prompt were not computed."""
    messages = [{"role": "system", "content": system}, *user]
    fields = {"model": "x", "messages": messages, "max_tokens": 2, "temperature": 0}
    usage = httpx.post(f"{url}/chat/completions", json=fields, timeout=60).raise_for_status().json()["usage"]
    return int(usage["prompt_tokens_details"]["cached_tokens"])


def test_a_prefix_is_shared_and_survives_a_restart(
    exact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "prefix.txt").write_text(RULES)
    today = f"Today is Sunday.\n{RULES}"
    with serving(exact, "--prefix", tmp_path / "prefix.txt") as (_, url):
        assert cached(url, RULES, question("Select OK")) > 512  # the first request of all
        assert cached(url, today, question("Select OK")) < 32
    files = {path.name: path.stat().st_ino for path in (tmp_path / "cache/edgeglm" / KIND).iterdir()}
    with serving(exact, "--keep", "64MiB") as (_, url):
        for system in (today, RULES):
            assert cached(url, system, question("Go back")) > 512
        assert cached(url, f"Today is Monday.\n{RULES}", question("Go back")) < 32
    after = {path.name: path.stat().st_ino for path in (tmp_path / "cache/edgeglm" / KIND).iterdir()}
    assert files.items() < after.items()
    assert len(after) == len(files) * 3 // 2
