"""Read a TOML file of the user's or ours into a strict type, with one line for whatever is wrong with it."""

from __future__ import annotations

import stat
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import msgspec

from edgeglm.devices.explain import explain
from edgeglm.devices.profile import BeyondLimitError, InvalidValueError
from edgeglm.errors import UnsupportedError, UsageError

MAX_BYTES = 1 << 20
T = TypeVar("T", bound=msgspec.Struct)


def read_file(
    path: Path,
    kind: type[T],
    noun: str,
    example: str,
    decode: Callable[[type, object], object] | None = None,
    check: Callable[[T], object] = lambda _: None,
) -> T:
    """Return what a file says.

    Args:
        path: The file.
        kind: What it must say.
        noun: What such a file is called.
        example: Where the user finds one that is right.
        decode: msgspec's ``dec_hook``, for types of ours.
        check: Rules that no type has; raises `InvalidValueError`.

    Raises:
        UsageError: The file cannot be read, is not TOML, or breaks a rule; the message names file and key.
        UnsupportedError: It asks for what its own limits rule out.
    """
    data = _decode(path, _read_text(path, noun, example), example)
    try:
        read = msgspec.convert(data, kind, dec_hook=decode)
        check(read)
    except msgspec.ValidationError as error:
        key, why, remedy = explain(error, kind)
        raise UsageError(f"{path}: {key}", why, remedy) from error
    except BeyondLimitError as error:
        raise UnsupportedError(f"{path}: {error.key}", error.why, error.remedy) from error
    except InvalidValueError as error:
        raise UsageError(f"{path}: {error.key}", error.why, error.remedy) from error
    return read


def _read_text(path: Path, noun: str, example: str) -> str:
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode) or status.st_size > MAX_BYTES:
            raise UsageError(path, "is not a file of at most 1 MiB", f"give {noun}; {example}")
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(path, "is not UTF-8 text", f"give {noun} in TOML; {example}") from error
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise UsageError(path, f"cannot be read: {why}", f"give {noun} that is readable; {example}") from error
    if not text.strip():
        raise UsageError(path, "is empty", f"write {noun} into it; {example}")
    return text


def _decode(path: Path, text: str, example: str) -> object:
    try:
        return msgspec.toml.decode(text)
    except (msgspec.DecodeError, RecursionError) as error:
        why = f"is not valid TOML: {error}"
        raise UsageError(path, why, f"correct it there; {example}") from error
