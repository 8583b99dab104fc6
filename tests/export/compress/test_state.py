"""States of a recovery on a disk that is full: an error of the operating system, and no part of a file."""

from __future__ import annotations

import errno
import resource
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from safetensors.torch import save_file

from edgeglm.export.compress.state import as_os_errors, write_state

WEIGHTS = {name: torch.zeros(100, 1000) for name in ("first", "second")}


@pytest.fixture
def small_files() -> Iterator[None]:
    """No file becomes larger than the first of the weights."""
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.usefixtures("small_files")
def test_a_state_that_has_no_room_is_an_error_of_the_system_and_leaves_the_old_one(tmp_path: Path) -> None:
    file = tmp_path / "state.pt"
    write_state(file, {"step": 1})
    with pytest.raises(OSError, match="too large") as error:
        write_state(file, WEIGHTS)
    assert error.value.errno == errno.EFBIG
    assert torch.load(file) == {"step": 1}
    assert [*tmp_path.iterdir()] == [file]


@pytest.mark.usefixtures("small_files")
def test_so_is_a_checkpoint_of_safetensors(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="too large") as error, as_os_errors():
        save_file(WEIGHTS, tmp_path / "model.safetensors")
    assert error.value.errno == errno.EFBIG


def test_another_error_stays_what_it_is() -> None:
    with pytest.raises(RuntimeError, match="shapes"), as_os_errors():
        torch.zeros(2, 3) @ torch.zeros(2, 3)
