"""Find, read and check device profiles: the shipped ones by name or alias, a user's own by path."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path
from typing import NoReturn

import msgspec

from edgeglm.devices.consistency import check_consistency
from edgeglm.devices.explain import explain
from edgeglm.devices.profile import Bandwidth, BeyondLimitError, InvalidValueError, Profile, Size
from edgeglm.errors import UnsupportedError, UsageError
from edgeglm.suggest import nearest_name
from edgeglm.units import parse_size

PROFILES = Path(__file__).with_name("profiles")
EXAMPLE = "docs/devices.md shows a complete one"
MAX_BYTES = 1 << 20


def profile_names() -> tuple[str, ...]:
    """The names of the shipped profiles, sorted, without their aliases."""
    return tuple(sorted(path.stem for path in PROFILES.glob("*.toml")))


def load_profile(name_or_path: str) -> Profile:
    """The shipped profile of that name or alias, or the profile file at that path.

    What ends in ``.toml`` or contains a path separator is a path.

    Raises:
        UsageError: There is no such profile, or the file is not a valid one.
    """
    if name_or_path.endswith(".toml") or os.sep in name_or_path:
        return read_profile(Path(name_or_path))
    names = profile_names()
    if name_or_path in names:
        return read_profile(PROFILES / f"{name_or_path}.toml")
    profiles = [read_profile(PROFILES / f"{name}.toml") for name in names]
    for profile in profiles:
        if name_or_path in profile.aliases:
            return profile
    known = [*names, *(alias for profile in profiles for alias in profile.aliases)]
    remedy = f"{nearest_name(name_or_path, known)} (a profile of your own is given by its path)"
    raise UsageError(name_or_path or repr(name_or_path), "is not a device profile", remedy)


def read_profile(path: Path) -> Profile:
    """The profile in a file.

    Raises:
        UsageError: The file cannot be read, is not TOML, or breaks a rule; the message names file and key.
        UnsupportedError: It asks of an NPU what its own limits rule out.
    """
    data = _decode(path, _read_text(path))
    try:
        profile = msgspec.convert(data, Profile, dec_hook=_decode_custom)
        check_consistency(profile)
    except msgspec.ValidationError as error:
        _refuse(path, *explain(error), cause=error)
    except BeyondLimitError as error:
        raise UnsupportedError(f"{path}: {error.key}", error.why, error.remedy) from error
    except InvalidValueError as error:
        _refuse(path, error.key, error.why, error.remedy, cause=error)
    return profile


def _refuse(path: Path, key: str, why: str, remedy: str, *, cause: Exception) -> NoReturn:
    raise UsageError(f"{path}: {key}", why, remedy) from cause


def _read_text(path: Path) -> str:
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode) or status.st_size > MAX_BYTES:
            raise UsageError(path, "is not a file of at most 1 MiB", f"give a profile; {EXAMPLE}")
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(path, "is not UTF-8 text", f"give a profile in TOML; {EXAMPLE}") from error
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise UsageError(path, f"cannot be read: {why}", f"give a readable profile; {EXAMPLE}") from error
    if not text.strip():
        raise UsageError(path, "is empty", f"write a profile into it; {EXAMPLE}")
    return text


def _decode(path: Path, text: str) -> object:
    try:
        return msgspec.toml.decode(text)
    except (msgspec.DecodeError, RecursionError) as error:
        why = f"is not valid TOML: {error}"
        raise UsageError(path, why, f"correct it there; {EXAMPLE}") from error


def _decode_custom(target: type, value: object) -> object:
    """A size or bandwidth from a file (text) or from JSON that edgeglm wrote (bytes)."""
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return target(value)
    if target is Bandwidth:
        match = re.fullmatch(r"(.*)/s", value) if isinstance(value, str) else None
        return Bandwidth(_parse_size(match[1] if match else None, value, "a bandwidth", "204.8GB/s"))
    if target is Size:
        return Size(_parse_size(value, value, "a size", "32GiB, 1500MB or plain bytes"))
    raise NotImplementedError(target)


def _parse_size(text: object, written: object, what: str, example: str) -> int:
    try:
        if isinstance(text, str):
            return parse_size(text)
    except UsageError:
        pass
    raise InvalidValueError("", f"{written!r} is not {what}", f"write {example}")
