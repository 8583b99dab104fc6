"""msgspec's validation errors in a user's words: the full key, what is wrong, and what is allowed."""

from __future__ import annotations

import re

from msgspec import Struct, ValidationError
from msgspec.inspect import (
    IntType,
    LiteralType,
    NoneType,
    StructType,
    Type,
    UnionType,
    VarTupleType,
    type_info,
)

from edgeglm.devices.profile import InvalidValueError
from edgeglm.suggest import nearest_name

# The last one: a value that is quoted in the text may contain the same words.
LOCATED = re.compile(r"(?P<text>.*) - at `\$(?P<path>[\w.\[\]]*)`", re.DOTALL)
UNKNOWN = re.compile(r"Object contains unknown field `(.*)`", re.DOTALL)
MISSING = re.compile(r"Object missing required field `(.*)`")
WRONG_ENUM = re.compile(r"Invalid enum value (.*)", re.DOTALL)
WRONG_TYPE = re.compile(r"Expected `([a-z]+).*`, got `([a-z]+).*`")
TOML_WORDS = {
    "int": "a whole number",
    "float": "a decimal number",
    "str": "text",
    "bool": "true or false",
    "array": "a list",
    "object": "a table",
}


def explain(error: ValidationError, kind: type[Struct]) -> tuple[str, str, str]:
    """Return the full dotted key of what was to be a `kind`, what is wrong with it and what is allowed there."""
    located = LOCATED.fullmatch(str(error))
    text, path = (located["text"], located["path"]) if located else (str(error), "")
    key, node = path.lstrip("."), _type_at(path, kind)
    cause = error.__cause__
    if isinstance(cause, InvalidValueError):
        return _join(key, cause.key), cause.why, cause.remedy
    if match := UNKNOWN.fullmatch(text):
        return _join(key, match[1]), "is not a key", nearest_name(match[1], _keys(node))
    if match := MISSING.fullmatch(text):
        return _join(key, match[1]), "is missing", f"add it; the keys here are {', '.join(_keys(node))}"
    if match := WRONG_ENUM.fullmatch(text):
        return key, f"{match[1]} is not allowed", _allowed_values(node)
    if match := WRONG_TYPE.fullmatch(text):
        return key, f"is {_word(match[2])}", f"write {_expectation(node, match[1])}"
    return key, f"does not fit: {text}", f"write {_expectation(node, '')}"


def _join(table: str, key: str) -> str:
    return ".".join(part for part in (table, key) if part)


def _type_at(path: str, kind: type[Struct]) -> Type:
    node = type_info(kind)
    for field in re.findall(r"\.(\w+)|\[", path):
        if isinstance(node, StructType):
            node = next((f.type for f in node.fields if f.encode_name == field), node)
        elif isinstance(node, VarTupleType):
            node = node.item_type
        if isinstance(node, UnionType):
            node = next(t for t in node.types if not isinstance(t, NoneType))
    return node


def _keys(node: Type) -> list[str]:
    return [field.encode_name for field in node.fields] if isinstance(node, StructType) else []


def _allowed_values(node: Type) -> str:
    values = node.values if isinstance(node, LiteralType) else ()
    return f"write one of {', '.join(map(str, values))}"


def _word(name: str) -> str:
    return TOML_WORDS.get(name, f"a {name}")


def _expectation(node: Type, name: str) -> str:
    if isinstance(node, StructType):
        return f"a table with the keys {', '.join(_keys(node))}"
    if isinstance(node, LiteralType):
        return f"one of {', '.join(map(str, node.values))}"
    if isinstance(node, IntType) and node.ge is not None:
        return f"a whole number from {node.ge} up"
    return _word(name)
