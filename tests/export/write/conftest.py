"""What files of this folder share."""

from __future__ import annotations

import pytest

from tests.export.pack_crash import contents, export


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The bundle of `pack_crash` as an unbroken run writes it."""
    target = tmp_path_factory.mktemp("unbroken") / "b"
    export(target)
    return contents(target)
