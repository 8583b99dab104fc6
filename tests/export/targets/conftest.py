"""Random numbers of a test that do not depend on the tests before it."""

from __future__ import annotations

from tests.export.foreign.conftest import own_numbers

__all__ = ["own_numbers"]
