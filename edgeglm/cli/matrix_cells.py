"""Turn the lists of `edgeglm matrix` into cells."""

from __future__ import annotations

import hashlib
import platform
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from importlib import metadata
from itertools import product
from pathlib import Path
from typing import get_args

import msgspec

from edgeglm.devices.loader import load_profile
from edgeglm.digest import KnownHashes
from edgeglm.engines import Format
from edgeglm.errors import UsageError
from edgeglm.export.checkpoint.locate import locate
from edgeglm.export.choose.precision import parse_precisions
from edgeglm.export.evaluate.original.cache import checkpoint_key
from edgeglm.export.matrix.outcome import Cell
from edgeglm.export.quantize.schemes import parse_scheme
from edgeglm.suggest import nearest_name

DEMO = "demo"


def cells_of(
    models: Sequence[str], targets: Sequence[str], precisions: Sequence[str], formats: Sequence[str], measured: bytes
) -> list[Cell]:
    """Return every combination.

    Args:
        models: Folders, or names.
        targets: Profiles.
        precisions: Of ``--precision``.
        formats: Of ``--format``.
        measured: What accuracy is measured with.

    Raises:
        UsageError: There is no such model, profile, precision or format.
    """
    for precision in precisions:
        for scheme in parse_precisions(precision).values():
            parse_scheme(scheme)
    for name in (item.rpartition("=")[2] for text in formats for item in text.split(",")):
        if name not in export_formats():
            raise UsageError(f"--formats {name}", "is not a format", nearest_name(name, export_formats()))
    profiles = {target: load_profile(target) for target in targets}
    cells = []
    for argument in dict.fromkeys(models):
        model = None if argument == DEMO else argument
        folder, name = locate(model)
        checkpoint = _content(folder)
        for (target, profile), precision, form in product(profiles.items(), precisions, formats):
            facts = msgspec.json.encode(msgspec.to_builtins(profile, enc_hook=int))
            inputs = hashlib.sha256(b"\0".join([checkpoint, facts, measured])).hexdigest()
            cells.append(Cell(model, name, _written(target, profile.name), precision, form, inputs))
    return cells


def items(texts: Sequence[str]) -> list[str]:
    """Return the items of lists that are parted by commas; a precision by module is one item."""
    return [item for text in texts for item in ([text] if "=" in text else text.split(",")) if item]


def export_formats() -> tuple[str, ...]:
    """Return the formats that a bundle's modules may have; that of the embedding's rows is no choice."""
    return tuple(name for name in get_args(Format) if name != "rows")


def read_environment() -> dict[str, str]:
    """Return the versions of what may change an outcome: edgeglm, Python, and what edgeglm and its extras ask for."""
    names = sorted({name for requirement in metadata.requires("edgeglm") or [] for name in _used(requirement)})
    versions = {"edgeglm": metadata.version("edgeglm"), "python": platform.python_version()}
    for name in names:
        with suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return versions | {"machine": platform.machine()}


def _content(model: Path) -> bytes:
    """Return what identifies a checkpoint's content, or a single file's. Raises UsageError where there is none."""
    if model.is_file():
        with suppress(OSError):
            return KnownHashes(model.parent).sha256(model.resolve()).encode()
    if not model.is_dir():
        raise UsageError(model, "cannot be read", "give a checkpoint's folder, a name on the hub, or demo")
    return checkpoint_key(model)


def _used(requirement: str) -> Iterator[str]:
    """Yield the name in ``onnx>=1; extra == "export"``, unless only developers need it."""
    name = re.match(r"[\w.-]+", requirement)
    if name and not re.search(r"extra == [\"']dev[\"']", requirement):
        yield name[0]


def _written(target: str, name: str) -> str:
    """Return what the export takes: the profile's name, or the path of a user's own."""
    return target if "/" in target or target.endswith(".toml") else name
