"""The profile texts that the tests of the reader change."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs" / "devices.md"


@pytest.fixture(scope="session")
def example() -> str:
    """The complete example of docs/devices.md."""
    block = re.search(r"```toml\n(.*?)```", DOCS.read_text("utf-8"), re.DOTALL)
    assert block
    return block[1]
