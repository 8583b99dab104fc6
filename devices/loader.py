"""Find, read and check device profiles: the shipped ones by name or alias, a user's own by path."""

from __future__ import annotations

import os
import re
from pathlib import Path

from edgeglm.devices.consistency import check_consistency
from edgeglm.devices.profile import Bandwidth, InvalidValueError, Profile, Size
from edgeglm.devices.reader import read_file
from edgeglm.errors import UsageError
from edgeglm.suggest import nearest_name
from edgeglm.units import parse_size

PROFILES = Path(__file__).with_name("profiles")
EXAMPLE = "docs/devices.md shows a complete one"


def profile_names() -> tuple[str, ...]:
    """Return the names of the shipped profiles, sorted, without their aliases."""
    return tuple(sorted(path.stem for path in PROFILES.glob("*.toml")))


def load_profile(name_or_path: str) -> Profile:
    """Return the shipped profile of that name or alias, or the profile file at that path.

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
    """Return the profile in a file.

    Raises:
        UsageError: The file cannot be read, is not TOML, or breaks a rule; the message names file and key.
        UnsupportedError: It asks of an NPU what its own limits rule out.
    """
    return read_file(path, Profile, "a profile", EXAMPLE, _decode_custom, check_consistency)


def _decode_custom(target: type, value: object) -> object:
    """Return a size or bandwidth from a file (text) or from JSON that edgeglm wrote (bytes)."""
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
