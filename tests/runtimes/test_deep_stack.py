"""Calls with a deep stack: what they return, what they raise, and where there is no room for one."""

from __future__ import annotations

import threading

import pytest

from edgeglm.runtimes.core import deep_stack
from edgeglm.runtimes.core.deep_stack import call_deep


def test_a_call_returns_and_raises_what_it_does() -> None:
    before = threading.stack_size()
    assert call_deep(lambda: (threading.current_thread().name, 7)) == ("deep", 7)
    with pytest.raises(KeyError, match="gone"):
        call_deep(lambda: {"here": 1}["gone"])
    assert threading.stack_size() == before


def test_without_room_for_the_stack_it_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    before = threading.stack_size()
    monkeypatch.setattr(deep_stack, "STACK_BYTES", 1 << 62)
    with pytest.raises(MemoryError):
        call_deep(lambda: 7)
    assert threading.stack_size() == before
