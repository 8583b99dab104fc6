"""Write what torch and safetensors write, with the operating system's errors as such."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from edgeglm.export.write.disk import sync

# How safetensors ends its words on an error of the operating system.
NUMBER = re.compile(r"\(os error (\d+)\)")


@contextmanager
def as_os_errors() -> Iterator[None]:
    """Raise the OSError, such as a full disk, that torch or safetensors has put into other words."""
    try:
        yield
    except (RuntimeError, SafetensorError) as error:
        if isinstance(error.__context__, OSError):  # torch closes its archive once more, and fails at that
            raise error.__context__ from error
        if found := NUMBER.search(str(error)):
            raise OSError(int(found[1]), os.strerror(int(found[1]))) from error
        raise


def write_state(file: Path, state: Mapping[str, Any]) -> None:
    """Write a state that is whole or not there. Raises OSError."""
    partial = file.with_suffix(".partial")
    try:
        with as_os_errors(), open(partial, "wb") as output:
            torch.save(state, output)
            output.flush()
            os.fsync(output.fileno())
    except OSError:
        partial.unlink(missing_ok=True)  # it would take the room that the next attempt needs
        raise
    os.replace(partial, file)
    sync(file.parent)
