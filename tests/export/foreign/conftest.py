"""Random numbers of a test that do not depend on the tests before it."""

from __future__ import annotations

import zlib
from collections.abc import Iterator

import numpy as np
import pytest

from tests.export.foreign import small_graphs


@pytest.fixture(autouse=True)
def own_numbers(request: pytest.FixtureRequest) -> Iterator[None]:
    """Give a test generators of its own, by its name."""
    seed = zlib.crc32(request.node.name.encode())
    with pytest.MonkeyPatch.context() as patch:
        for module in (small_graphs, request.module):
            if hasattr(module, "RANDOM"):
                patch.setattr(module, "RANDOM", np.random.default_rng(seed))
        yield
