"""Rules of CONTRIBUTING.md that ruff cannot check: length of files, a test for each module, docstrings, loops.

Each list below holds what still breaks a rule. It only shrinks: whoever mends an entry takes it out.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
CODE = ("edgeglm", "export", "runtimes", "devices")
LONGEST = 300

# Modules that no test imports and no test file is named after, by name. Other tests run them. This list is the floor of
# coverage: on Python 3.11 a run that counts lines took 2.6 times the processor, and sees no child process.
UNTESTED = set(
    """
    accuracy_report adb awq budget cases chat_request chat_worker checkpoint_options compile_worker
    compressed convert_task convert_worker converter device device_limits dialects explain
    fill formats glm gptq header header_checks matrix_cells
    observe overflow progress reader remote restore run serve
    settings shipped_assets sidecars stamp start template_limits torch_modules tower unhooked value_ranges
""".split()
)

# First words that no verb is, and no noun.
FRAGMENT = set(
    """
    about all as both by does each every everything for from how in into is its of on one only over so some that these
    this those what when where which while why with without
""".split()
)
ARTICLES = {"a", "an", "the"}
NO_NOUNS = {"each", "found", "some", "said"}


def python_files(*folders: str) -> Iterator[Path]:
    """Yield the Python files of folders, without those behind a symlink, which are another folder's."""
    for folder in folders:
        for path in sorted((ROOT / folder).rglob("*.py")):
            if not any(parent.is_symlink() for parent in path.parents):
                yield path


def test_files_have_at_most_300_lines() -> None:
    long = {
        str(path.relative_to(ROOT))
        for path in python_files(*CODE, "tests", "benchmarks")
        if len(path.read_text(encoding="utf-8").splitlines()) > LONGEST
    }
    assert long == set(), "look for a second responsibility"


def test_modules_have_a_test_of_their_own() -> None:
    imported = {name for path in python_files("tests") for name in _imports(path)}
    named = {path.stem.removeprefix("test_") for path in python_files("tests")}
    untested = set()
    for path in python_files(*CODE):
        dotted = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        dotted = dotted if dotted.startswith("edgeglm.") else f"edgeglm.{dotted}"
        if not path.stem.startswith("__") and dotted not in imported and path.stem not in named:
            untested.add(path.stem)
    assert untested - UNTESTED == set(), "write a test that imports them"
    assert UNTESTED - untested == set(), "take these out of UNTESTED"


def test_public_docstrings_begin_with_a_verb() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{line}: {word}"
        for path in python_files(*CODE)
        for line, word in _fragments(ast.parse(path.read_text(encoding="utf-8")))
    ]
    assert found == [], "begin with a verb, or in modules, classes and properties with a noun"


def test_loop_variables_are_nouns() -> None:
    loops = {
        path.stem
        for path in python_files(*CODE, "benchmarks")
        for loop in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(loop, ast.For | ast.comprehension)
        for name in ast.walk(loop.target)
        if isinstance(name, ast.Name) and name.id in NO_NOUNS
    }
    assert loops == set(), "name what it is: tensor, module, message"


def test_long_docstrings_have_a_section_of_arguments() -> None:
    unsectioned = {
        f"{path.stem}.{function.name}"
        for path in python_files(*CODE)
        for function in _public_functions(ast.parse(path.read_text(encoding="utf-8")))
        if len(_parameters(function)) >= 3 and not _is_sectioned(ast.get_docstring(function) or "")
    }
    unsectioned -= {name for name in unsectioned if name.endswith(".command")}  # click prints it as the help
    assert unsectioned == set(), "add Args:, or say all in one line"


def _public_functions(tree: ast.Module | ast.ClassDef) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not node.name.startswith("_"):
            yield node
        elif isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield from _public_functions(node)


def _parameters(function: ast.FunctionDef | ast.AsyncFunctionDef) -> list[str]:
    given = function.args
    names = [parameter.arg for parameter in (*given.posonlyargs, *given.args, *given.kwonlyargs)]
    return [name for name in names if name not in ("self", "cls")]


def _is_sectioned(docstring: str) -> bool:
    return "\n" not in docstring or "\nArgs:\n" in docstring


def _imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _fragments(tree: ast.Module | ast.ClassDef) -> Iterator[tuple[int, str]]:
    """Yield line and first word of docstrings that begin with neither a verb nor, in classes and properties, a noun."""
    if isinstance(tree, ast.Module) and (word := _first_word(tree)) in FRAGMENT:
        yield 1, word
    for node in tree.body:
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) or node.name.startswith("_"):
            continue
        word = _first_word(node)
        is_noun = isinstance(node, ast.ClassDef) or any("property" in ast.dump(each) for each in node.decorator_list)
        if word in FRAGMENT or (word in ARTICLES and not is_noun):
            yield node.lineno, word
        if isinstance(node, ast.ClassDef):
            yield from _fragments(node)


def _first_word(node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    return (ast.get_docstring(node) or "-").split()[0].strip(".,:;()").lower()


def test_the_composer_is_at_most_eight_files() -> None:
    files = [path for path in (ROOT / "export/pipeline").glob("*.py") if path.stem != "__init__"]
    assert len(files) <= 8, "a step belongs to a part above the composer"
