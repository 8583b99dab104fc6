"""A bundle with any damage at all is refused, by whatever opens it; none runs."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

from edgeglm.bundle import load_bundle, verify_bundle
from edgeglm.errors import EdgeglmError
from tests.adversary.fuzzer import Fuzzer

Damage = Callable[[Path, random.Random], object]


def flip(path: Path, chance: random.Random) -> None:
    """Flip one bit, in place."""
    with open(path, "r+b") as file:
        offset = chance.randrange(os.path.getsize(path))
        file.seek(offset)
        byte = file.read(1)[0] ^ 1 << chance.randrange(8)
        file.seek(offset)
        file.write(bytes([byte]))


def cut(path: Path, chance: random.Random) -> None:
    """Cut the end off."""
    os.truncate(path, chance.randrange(os.path.getsize(path)))


def grow(path: Path, chance: random.Random) -> None:
    """Append bytes."""
    with open(path, "ab") as file:
        file.write(chance.randbytes(chance.randint(1, 5000)))


def blank(path: Path, chance: random.Random) -> None:
    """Put zeros where something else was, as a lost page does."""
    data = bytearray(path.read_bytes())
    start = chance.randrange(len(data))
    while not any(data[start : start + 4096]):
        start = chance.randrange(len(data))
    data[start : start + 4096] = bytes(len(data[start : start + 4096]))
    path.write_bytes(data)


def remove(path: Path, chance: random.Random) -> None:
    path.unlink()


def become_a_folder(path: Path, chance: random.Random) -> None:
    path.unlink()
    path.mkdir()


def become_a_fifo(path: Path, chance: random.Random) -> None:
    path.unlink()
    os.mkfifo(path)


def lead_away(path: Path, chance: random.Random) -> None:
    """Move the file out of the bundle, and link to it."""
    outside = path.parents[len(path.relative_to(path.anchor).parts) - 1] / "dev/zero"
    path.unlink()
    path.symlink_to(outside)


def deny(path: Path, chance: random.Random) -> None:
    """Link to itself, which no one can open."""
    path.unlink()
    path.symlink_to(path)


DAMAGE: list[Damage] = [flip, flip, flip, cut, grow, blank, remove, become_a_folder, become_a_fifo, lead_away, deny]


def test_no_damage_of_a_bundle_is_unseen(bundle: Path, tmp_path: Path, fuzz: Callable[[str], Fuzzer]) -> None:
    copy, fuzzer = Path(shutil.copytree(bundle, tmp_path / "copy")), fuzz("a file of a bundle damaged")
    files = [path.relative_to(copy) for path in copy.rglob("*") if path.is_file()]
    for _ in fuzzer.attempts():
        relative, damage = fuzzer.random.choice(files), fuzzer.random.choice(DAMAGE)
        damage(copy / relative, fuzzer.random)
        attempt = f"{damage.__name__} {relative}"
        try:
            verify_bundle(load_bundle(copy))
            fuzzer.fault(attempt, "unseen")
        except EdgeglmError as error:
            fuzzer.saw(f"refused ({error.exit_code})")
        except Exception as error:
            fuzzer.fault(attempt, f"{type(error).__name__}: {error}")
        restore(bundle / relative, copy / relative)


def restore(whole: Path, path: Path) -> None:
    """Put the file back as it was."""
    if path.is_dir() and not path.is_symlink():
        path.rmdir()
    elif os.path.lexists(path):
        path.unlink()
    shutil.copy(whole, path)
