"""Engines are known by their names in their own folders and in one table, and nowhere else."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

from edgeglm.engines import DIALECTS, ENGINES, Dialect, EngineName, Format, Placement, engine_for

ROOT = Path(__file__).parents[1]
# The table, the engines' own folders, the forms of precisions, which differ by dialect, and the suffixes of files that
# other tools read.
OWN = (
    "edgeglm/engines.py", "runtimes/engines/", "export/targets/", "export/quantize/storage.py",
    "export/quantize/lowering.py", "export/checkpoint/recognize.py",
)  # fmt: skip
# What stands for an engine.
NAMES = {*get_args(EngineName), *get_args(Dialect), "gpu", "npu", *get_args(Format)} - {"rows"}


def decisions(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield line and name where code decides by the name of an engine: compared, matched, looked up or a key."""
    for node in ast.walk(tree):
        parts: list[ast.AST | None] = []
        if isinstance(node, ast.Compare):
            parts = [node.left, *node.comparators]
        elif isinstance(node, ast.MatchValue):
            parts = [node.value]
        elif isinstance(node, ast.Dict):
            parts = [*node.keys]
        elif isinstance(node, ast.Subscript):
            parts = [node.slice]
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in ("get", "pop"):
            parts = [*node.args[:1]]
        for part in parts:
            yield from ((getattr(node, "lineno", 0), name) for name in _constants(part) if name in NAMES)


def _constants(node: ast.AST | None) -> Iterator[str]:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value
    elif isinstance(node, ast.Tuple | ast.List | ast.Set):
        for item in node.elts:
            yield from _constants(item)


def test_the_table_has_every_name_once() -> None:
    assert tuple(ENGINES) == get_args(EngineName)
    assert tuple(DIALECTS) == get_args(Dialect)
    assert {engine.placement for engine in ENGINES.values()} == set(get_args(Placement))
    assert {engine.reads for engine in ENGINES.values()} == set(get_args(Format)) - {"rows"}
    for engine in ENGINES.values():
        assert engine.everywhere.reads == engine.reads
        assert engine.everywhere.placement == "cpu"


def test_an_engine_is_found_by_where_it_computes() -> None:
    assert [engine_for(place) for place in get_args(Placement)] == [
        ENGINES[name] for name in ("qnn", "tensorrt", "ort")
    ]
    assert engine_for("cpu", ("litert",)) is ENGINES["ort"]
    assert engine_for("cpu", reads="tflite") is ENGINES["litert"]
    assert engine_for("gpu", reads="tflite") is None


def test_a_decision_by_name_is_found() -> None:
    code = 'a == "qnn"\nb in ("x", "ort")\n{"litert": 1}\nc["npu"]\nd.get("tflite")\nmatch e:\n    case "tensorrt": 1'
    names = [name for _, name in decisions(ast.parse(code))]
    assert names == ["qnn", "ort", "npu", "tflite", "tensorrt", "litert"] or set(names) == NAMES & set(names)
    assert len(names) == 6
    assert list(decisions(ast.parse('f("qnn", engine="ort")\nx = "litert"'))) == []


def test_nothing_else_decides_by_an_engines_name() -> None:
    found = []
    for folder in ("edgeglm", "export", "runtimes", "devices"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            name = path.relative_to(ROOT).as_posix()
            if any(parent.is_symlink() for parent in path.parents) or name.startswith(OWN):
                continue
            found += [f"{name}:{line}: {what}" for line, what in decisions(ast.parse(path.read_text("utf-8")))]
    assert found == [], "ask edgeglm.engines what the engine can do"
