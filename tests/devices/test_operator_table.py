"""The operator tables' strict reader, and which table holds for a device."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgeglm.devices.loader import load_profile, profile_names
from edgeglm.devices.operator_table import TABLES, operator_table, read_table, table_for
from edgeglm.errors import UsageError

TABLE = """
engine = "ort"
version = "1"
opset = { value = [7, 26], source = "measured: here" }

[sources]
here = "measured: here"

[operators]
Add = { source = "here", versions = [7, 14], max_rank = 4 }
"com.microsoft.QuickGelu" = { source = "here" }
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "ort-1.toml"


def test_a_table_is_read(file: Path) -> None:
    file.write_text(TABLE)
    table = read_table(file)
    assert table.title == "ONNX Runtime 1"
    assert table.opset is not None
    assert table.opset.value == (7, 26)
    assert table.operators["Add"].versions == (7, 14)
    assert table.operators["com.microsoft.QuickGelu"].max_rank is None


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ('"ort"', '"onnx"', "engine: 'onnx' is not allowed; write one of "),
        ("version = ", "vers = ", "vers: is not a key; did you mean version?"),
        ("[7, 26]", "[7]", "opset.value: does not fit: Expected `array` of length 2, got 1"),
        ("[sources]", "[source]", "source: is not a key; did you mean sources?"),
        ('here = "measured: here"', 'here = "somebody"', "sources.here: 'somebody' names no source; write a URL"),
        ("max_rank = 4", "max_rang = 4", "operators.Add.max_rang: is not a key; did you mean max_rank?"),
        ("max_rank = 4", 'max_rank = "4"', "operators.Add.max_rank: is text; write a whole number from 1 up"),
        ("max_rank = 4", 'dtypes = ["half"]', "operators.Add.dtypes[0]: 'half' is not allowed; write one of "),
        ('source = "here" }', 'source = "there" }', "QuickGelu.source: 'there' is not in sources; write one of here"),
        ('source = "here" }', "versions = [1, 1] }", "QuickGelu.source: is missing; add it; the keys here are "),
    ],
)
def test_a_wrong_key_type_or_value_is_named(file: Path, old: str, new: str, expected: str) -> None:
    assert old in TABLE
    file.write_text(TABLE.replace(old, new))
    with pytest.raises(UsageError) as raised:
        read_table(file)
    assert str(raised.value).startswith(f"{file}: ")
    assert expected in str(raised.value)


def test_a_table_without_operators_is_refused(file: Path) -> None:
    file.write_text(TABLE.partition("[operators]")[0] + "[operators]\n")
    with pytest.raises(UsageError, match="operators: is empty; name each operator"):
        read_table(file)


@pytest.mark.parametrize("path", sorted(TABLES.glob("*.toml")), ids=lambda path: path.stem)
def test_a_shipped_table_is_what_its_name_says(path: Path) -> None:
    table = read_table(path)
    assert path.stem == f"{table.engine}-{table.version}"
    assert {operator.source for operator in table.operators.values()} == set(table.sources)


@pytest.mark.parametrize(
    ("engine", "version", "expected"),
    [
        ("tensorrt", "8.5.2", "8.5"),
        ("tensorrt", "10.3", "10.3"),
        ("tensorrt", "10.9", "10.3"),
        ("tensorrt", "10.16", "10.16"),
        ("tensorrt", "11.2", "10.16"),
        ("tensorrt", "7.1", None),
    ],
)
def test_a_version_has_the_newest_table_that_is_not_newer(engine: str, version: str, expected: str | None) -> None:
    table = operator_table(engine, version)
    assert (table and table.version) == expected


def test_every_engine_of_every_profile_has_a_table() -> None:
    for name in profile_names():
        profile = load_profile(name)
        for engine in profile.engines.value:
            table = table_for(profile, engine)
            assert table is not None, (name, engine)
            assert table.engine == engine
