"""Roles of modules, and that no code but the registry's tells modules apart by their names."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgeglm.roles import DECODER, ENCODERS, MODULES, TABLE, HasRole, ModuleName, encoder_of

ROOT = Path(__file__).parents[1]
NAMES = {TABLE, DECODER, *ENCODERS}
LOOKUPS = {"module", "_module", "get", "check", "opening", "_loaded"}


class Part(HasRole):
    def __init__(self, name: ModuleName) -> None:
        self.name = name


@pytest.mark.parametrize("name", MODULES)
def test_every_module_has_one_role(name: ModuleName) -> None:
    part = Part(name)
    assert [part.is_table, part.encodes is not None, part.is_decoder].count(True) == 1
    assert part.result == ("logits" if name == DECODER else "features")
    if part.encodes:
        assert encoder_of(part.encodes) == name


def test_no_code_outside_the_registry_compares_or_looks_up_the_name_of_a_module() -> None:
    files = [path for folder in ("edgeglm", "export", "runtimes", "devices") for path in (ROOT / folder).rglob("*.py")]
    assert [
        f"{path.relative_to(ROOT)}:{line}"
        for path in files
        if path != ROOT / "edgeglm/roles.py" and not any(parent.is_symlink() for parent in path.parents)
        for line in asked(ast.parse(path.read_text(encoding="utf-8")))
    ] == []


def test_names_that_are_asked_for_are_found() -> None:
    code = 'a == "vision"; b in ("decoder", c); d["embedding"]; e.module("vision"); "decoder" in f; name = "vision"'
    assert len(list(asked(ast.parse(code)))) == 5


def asked(tree: ast.AST) -> Iterator[int]:
    """Yield the lines that compare something with a module's name, or look something up by it."""
    for node in ast.walk(tree):
        match node:
            case ast.Compare(left=left, comparators=others):
                operands = [left, *others]
            case ast.Subscript(value=ast.Name(id="Literal")):
                continue  # a type: the kinds of a server's requests have a name of a module among them
            case ast.Subscript(slice=key):
                operands = [key]
            case ast.Call(func=ast.Attribute(attr=name) | ast.Name(id=name), args=arguments) if name in LOOKUPS:
                operands = arguments
            case ast.MatchValue(value=value):
                operands = [value]
            case _:
                continue
        if any(isinstance(part, ast.Constant) and part.value in NAMES for side in operands for part in parts(side)):
            yield node.lineno


def parts(node: ast.expr) -> list[ast.expr]:
    return node.elts if isinstance(node, ast.Tuple | ast.List | ast.Set) else [node]
