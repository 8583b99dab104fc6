"""Operator tables of the engines' versions in ``operators/``, their strict reader, and the choice of one.

An operator is named as in ONNX, one of another domain behind it (``com.microsoft.MatMulNBits``); in LiteRT's table, as
its builtins are. docs/operators.md has the format.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct

from edgeglm.devices.explain import explain
from edgeglm.devices.profile import SOURCE, Count, Fact, InvalidValueError, Profile
from edgeglm.devices.reader import read_file
from edgeglm.engines import ENGINES, EngineName
from edgeglm.errors import UsageError

TABLES = Path(__file__).with_name("operators")
# Newer than any.
NEWEST = "9999"
EXAMPLE = "docs/operators.md says how one looks"

Dtype = Literal[
    "float32", "float16", "bfloat16", "float64", "int64", "int32", "int16", "int8", "uint8", "uint16", "int4", "uint4",
    "bool", "float8e4m3fn", "float4e2m1",
]  # fmt: skip
Index = Annotated[int, Meta(ge=0)]


class Operator(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    """An operator that the engine has, with what it asks of a node; ``source`` is one of the table's ``sources``.

    Args:
        source: Where that was read.
        versions: The oldest and the newest version of the operator, each the opset in which it appeared.
        dtypes: What its first input may be.
        max_rank: Of its inputs and outputs.
        inputs: How many it takes at most.
        outputs: How many it gives at most.
        constant: Which inputs must be constants, counted from 0.
        attributes: Those that may have no other value.
    """

    source: str
    versions: tuple[Count, Count] | None = None
    dtypes: tuple[Dtype, ...] | None = None
    max_rank: Count | None = None
    inputs: Count | None = None
    outputs: Count | None = None
    constant: tuple[Index, ...] = ()
    attributes: dict[str, int | str] = {}


class Table(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The operators that one version of an engine supports.

    Args:
        engine: As profiles name it.
        version: Of the engine, or of the chip that decides.
        opset: The oldest and the newest opset of a graph.
        max_rank: The most dimensions of any tensor.
        sources: Sources by the short names that operators give them.
        operators: By their names.
    """

    engine: EngineName
    version: str
    opset: Fact[tuple[Count, Count]] | None = None
    max_rank: Fact[Count] | None = None
    sources: dict[str, str]
    operators: dict[str, Operator]

    @property
    def title(self) -> str:
        """The engine and version, for messages."""
        return f"{ENGINES[self.engine].title} {self.version}"


class _File(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A table whose operators are not read yet, because msgspec does not say which one is wrong."""

    engine: EngineName
    version: str
    opset: Fact[tuple[Count, Count]] | None = None
    max_rank: Fact[Count] | None = None
    sources: dict[str, str]
    operators: dict[str, dict[str, object]]


def read_table(path: Path) -> Table:
    """Return the table in a file. Raises UsageError, with the key at fault."""
    file = read_file(path, _File, "an operator table", EXAMPLE, check=_check_sources)
    operators = {name: _operator(path, name, entry, file.sources) for name, entry in file.operators.items()}
    return Table(
        engine=file.engine,
        version=file.version,
        opset=file.opset,
        max_rank=file.max_rank,
        sources=file.sources,
        operators=operators,
    )


@cache
def operator_table(engine: EngineName, version: str) -> Table | None:
    """Return the table of an engine's version, else of the newest one before it; None where there is none."""
    found = [path for path in TABLES.glob(f"{engine}-*.toml") if _numbers(_version(path)) <= _numbers(version)]
    return read_table(max(found, key=lambda path: _numbers(_version(path)))) if found else None


def table_for(profile: Profile, engine: EngineName) -> Table | None:
    """Return the table that holds for an engine on a device: by the version in its toolchain, else the newest one."""
    toolchain = getattr(profile.toolchain, engine) if ENGINES[engine].toolchain else None
    return operator_table(engine, toolchain.table if toolchain else NEWEST)


def _version(path: Path) -> str:
    return path.stem.partition("-")[2]


def _numbers(version: str) -> tuple[int, ...]:
    """Return 10.3 as (10, 3), v68 as (68,); of 8.5.2 the first two numbers."""
    parts = version.removeprefix("v").split(".")[:2]
    return tuple(int(part) for part in parts if part.isdecimal())


def _check_sources(file: _File) -> None:
    for name, source in file.sources.items():
        if not SOURCE.fullmatch(source):
            remedy = "write a URL, 'measured: WHERE', or a document and its place ('Board manual, section 3')"
            raise InvalidValueError(f"sources.{name}", f"{source!r} names no source", remedy)
    if not file.operators:
        raise InvalidValueError("operators", "is empty", "name each operator that the engine has")


def _operator(path: Path, name: str, entry: dict[str, object], sources: dict[str, str]) -> Operator:
    try:
        operator = msgspec.convert(entry, Operator)
    except msgspec.ValidationError as error:
        key, why, remedy = explain(error, Operator)
        raise UsageError(f"{path}: {'.'.join(filter(None, ('operators', name, key)))}", why, remedy) from error
    if operator.source not in sources:
        why, remedy = f"{operator.source!r} is not in sources", f"write one of {', '.join(sources)}"
        raise UsageError(f"{path}: operators.{name}.source", why, remedy)
    return operator
