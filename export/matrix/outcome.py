"""A cell of the matrix, what came of it, and the file that keeps it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import msgspec
from msgspec import Struct

from edgeglm.errors import UsageError
from edgeglm.export.write.disk import explained
from edgeglm.files import read_bytes
from edgeglm.manifest import Metric
from edgeglm.roles import HasRole, ModuleName
from edgeglm.strict_json import StrictJsonError, check_json

SCHEMA: Final = 1
MAX_BYTES = 64 << 20
REMEDY = "remove it, or give another -o"
Identity = tuple[str, str, str, str]
State = Literal["done", "failed", "not run", "not needed"]


@dataclass(frozen=True)
class Cell:
    """A combination to try. ``argument`` is MODEL on the command line, None for the demo; ``model`` is its name.

    ``inputs`` is a hash of all that decides the outcome besides the environment: checkpoint, profile and samples.
    """

    argument: str | None
    model: str
    target: str
    precision: str
    format: str
    inputs: str

    @property
    def identity(self) -> Identity:
        """The key of the cell's row."""
        return self.model, self.target, self.precision, self.format


class Stage(Struct, frozen=True):
    """The state of a step. ``text`` is by or on what it was done; else why it failed, or was not run."""

    state: State = "not run"
    text: str = ""


class Part(HasRole, Struct, frozen=True):
    """A module of the bundle: its precision, size, and error against the original where that was measured."""

    name: ModuleName
    precision: str
    bytes: int
    max_relative_error: float | None


class Outcome(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The outcome of a cell; sizes in bytes.

    ``environment`` has the versions of what may change it. Only a ``finished`` outcome stands for the next run: one
    that was cut short, or that memory or disk had no room for, is tried again.
    """

    model: str
    target: str
    precision: str
    format: str
    inputs: str
    environment: dict[str, str]
    finished: bool = False
    exported: Stage = Stage()
    compiled: Stage = Stage()
    executed: Stage = Stage()
    validated: Stage = Stage()
    modules: tuple[Part, ...] = ()
    samples: int = 0
    metrics: tuple[Metric, ...] = ()
    bundle_bytes: int = 0
    export_peak_rss_bytes: int = 0
    peak_rss_bytes: int = 0

    @property
    def identity(self) -> Identity:
        """The identity of the cell."""
        return self.model, self.target, self.precision, self.format

    def answers(self, cell: Cell, environment: dict[str, str]) -> bool:
        """Return whether the cell need not be tried again."""
        same = (self.identity, self.inputs, self.environment) == (cell.identity, cell.inputs, environment)
        return self.finished and same


class _File(Struct, frozen=True, forbid_unknown_fields=True):
    """The file's only object; ``checksums`` are the SHA-256 of the outcomes, one each."""

    matrix_schema: Literal[1]
    checksums: list[str] = []
    outcomes: list[msgspec.Raw] = []


def untried(cell: Cell, environment: dict[str, str], why: str) -> Outcome:
    """Return the outcome of a cell that nobody ran."""
    return Outcome(
        model=cell.model,
        target=cell.target,
        precision=cell.precision,
        format=cell.format,
        inputs=cell.inputs,
        environment=environment,
        exported=Stage("not run", why),
    )


def read_outcomes(file: Path) -> tuple[dict[Identity, Outcome], int]:
    """Return the outcomes that a file keeps, and how many of it are damaged and left out.

    Both are nothing where there is no file.

    Raises:
        UsageError: It is something else, or too damaged to tell.
    """
    if not os.path.lexists(file):
        return {}, 0
    data = read_bytes(file, REMEDY, MAX_BYTES)
    try:
        check_json(data)
        kept = msgspec.json.decode(data, type=_File)
    except (StrictJsonError, msgspec.DecodeError) as error:
        raise UsageError(file, f"holds no results of a matrix: {error}", REMEDY) from error
    sums = [*kept.checksums, *[""] * len(kept.outcomes)]
    found = [_checked(raw, checksum) for raw, checksum in zip(kept.outcomes, sums, strict=False)]
    whole = {outcome.identity: outcome for outcome in found if outcome}
    return whole, len(found) - len(whole)


def _checked(raw: bytes | msgspec.Raw, checksum: str) -> Outcome | None:
    """Return an outcome, or None where it is not what was written."""
    with suppress(msgspec.DecodeError):
        outcome = msgspec.json.decode(raw, type=Outcome)
        return outcome if _checksum(outcome) == checksum else None
    return None


def _checksum(outcome: Outcome) -> str:
    return hashlib.sha256(msgspec.json.encode(outcome, order="deterministic")).hexdigest()


def write_outcomes(file: Path, outcomes: Iterable[Outcome]) -> None:
    """Keep outcomes; a kill leaves the old file or the new one."""
    raw = [msgspec.Raw(msgspec.json.encode(outcome, order="deterministic")) for outcome in outcomes]
    # Of what will be read: a whole number may stand where a fraction can.
    sums = [_checksum(msgspec.json.decode(outcome, type=Outcome)) for outcome in raw]
    data = msgspec.json.encode(_File(SCHEMA, sums, raw), order="deterministic")
    replace_file(file, msgspec.json.format(data, indent=1) + b"\n")


def replace_file(file: Path, data: bytes) -> None:
    """Write a file as a whole. Raises UsageError, or BudgetError where the disk is full."""
    partial = file.with_name(f".{file.name}.{os.getpid()}")
    with explained(file, file.absolute().parent):
        try:
            partial.write_bytes(data)
            partial.replace(file)
        except OSError:
            partial.unlink(missing_ok=True)
            raise
