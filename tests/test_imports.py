"""The import rules of docs/architecture.md: in every file as written, and in a fresh process as loaded."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HOST_ONLY = ("torch", "transformers", "onnx", "onnx_ir", "onnxscript", "edgeglm.export")
HEAVY = (*HOST_ONLY, "onnxruntime", "onnxruntime_qnn", "ai_edge_litert", "tensorrt", "tensorrt_rtx")
# The parts of export/ in the order of the data: each imports itself and those before it.
LAYERS = """
    model metric families checkpoint samples chat choose trace graph requests cluster quantize write prepare prefix
    prove calibrate targets predict evaluate burn pipeline compress search foreign api api_worker matrix demo
""".split()
FOREIGN_LAYERS = "normalize read measure fp16 quantize plan".split()  # the folders of export/foreign/, likewise


def python_files(folder: Path) -> Iterator[Path]:
    """Yield the Python files of a folder, without those behind a symlink, which are another folder's."""
    for directory, _, names in os.walk(folder):
        yield from (Path(directory, name) for name in names if name.endswith(".py"))


def imports(path: Path) -> set[str]:
    """Return the dotted names that a file imports; a relative import starts with a dot."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            found |= {module} | {f"{module}.{alias.name}" for alias in node.names}
    return found


def violations(files: Iterable[Path], banned: Iterable[str]) -> list[str]:
    """Return ``file imports name`` for each import of a banned module or of something inside it."""
    banned = tuple(banned)
    return [
        f"{path} imports {name}"
        for path in files
        for name in sorted(imports(path))
        if any(name == module or name.startswith(f"{module}.") for module in banned)
    ]


def layer_violations(folder: Path, layers: Sequence[str], package: str) -> list[str]:
    """Return each import by which one part of a folder reaches into a later one."""
    found = []
    for index, name in enumerate(layers):
        files = python_files(folder / name) if (folder / name).is_dir() else [folder / f"{name}.py"]
        found += violations(files, [f"{package}.{later}" for later in layers[index + 1 :]])
    return found


def shared_files() -> Iterator[Path]:
    """Yield the modules that both sides share: all of edgeglm/ but the command line."""
    return (path for path in python_files(ROOT / "edgeglm") if path.parent.name != "cli")


def test_the_files_are_found() -> None:
    assert ROOT / "edgeglm/errors.py" in set(shared_files())
    assert ROOT / "devices/__init__.py" in set(python_files(ROOT / "devices"))


@pytest.mark.parametrize("folder", ["runtimes", "devices"])
def test_the_device_side_imports_nothing_of_the_host_side(folder: str) -> None:
    assert violations(python_files(ROOT / folder), HOST_ONLY) == []


def test_what_both_sides_share_imports_nothing_heavy() -> None:
    assert violations(shared_files(), HEAVY) == []


@pytest.mark.parametrize("folder", ["edgeglm", "export", "devices", "runtimes", "tests"])
def test_no_import_is_relative_or_bypasses_the_package(folder: str) -> None:
    files = list(python_files(ROOT / folder))
    assert [f"{path} imports {name}" for path in files for name in imports(path) if name[0] == "."] == []
    assert violations(files, ("export", "devices", "runtimes")) == []


@pytest.mark.parametrize("folder", ["edgeglm", "export", "devices", "runtimes"])
def test_no_init_imports_anything_heavy(folder: str) -> None:
    files = [path for path in python_files(ROOT / folder) if path.name == "__init__.py"]
    assert files
    assert violations(files, HEAVY) == []


def test_no_part_of_export_imports_a_later_one() -> None:
    assert layer_violations(ROOT / "export", LAYERS, "edgeglm.export") == []


def test_no_folder_of_a_users_graphs_imports_a_later_one() -> None:
    folder = ROOT / "export/foreign"
    assert {path.parent.name for path in folder.glob("*/__init__.py")} == set(FOREIGN_LAYERS)
    assert layer_violations(folder, FOREIGN_LAYERS, "edgeglm.export.foreign") == []


def test_no_product_code_imports_the_demo() -> None:
    """It ships as data, which `samples/shipped.py` locates; its code makes that data."""
    demo = ROOT / "export/demo"
    files = [path for folder in ("edgeglm", "export", "devices", "runtimes") for path in python_files(ROOT / folder)]
    assert violations((path for path in files if demo not in path.parents), ["edgeglm.export.demo"]) == []


def test_every_part_of_export_has_its_layer() -> None:
    parts = {
        path.stem for path in (ROOT / "export").iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()
    }
    assert parts - {"__init__"} == set(LAYERS)


def test_a_part_that_imports_a_later_one_is_found(tmp_path: Path) -> None:
    for name in LAYERS:
        (tmp_path / f"{name}.py").touch()
    (tmp_path / "quantize.py").unlink()
    (tmp_path / "quantize").mkdir()
    (tmp_path / "quantize/codes.py").write_text("from edgeglm.export import prove\nimport edgeglm.export.families.glm")
    (tmp_path / "choose.py").write_text("import edgeglm.export.write.disk\nimport edgeglm.errors")
    (tmp_path / "pipeline.py").write_text("import edgeglm.export.quantize, edgeglm.export.targets.qnn")
    assert layer_violations(tmp_path, LAYERS, "edgeglm.export") == [
        f"{tmp_path}/choose.py imports edgeglm.export.write.disk",
        f"{tmp_path}/quantize/codes.py imports edgeglm.export.prove",
    ]


IMPORT_ALL = """
import importlib.util, pkgutil
for room in {rooms}:
    package = importlib.import_module(room)
    for module in pkgutil.walk_packages(package.__path__, room + "."):
        if ".serve." not in module.name or importlib.util.find_spec("uvicorn"):  # which needs an extra
            importlib.import_module(module.name)
"""


@pytest.mark.parametrize(
    ("code", "unwanted"),
    [
        pytest.param("import edgeglm", HEAVY, id="import edgeglm"),
        pytest.param("from edgeglm.cli.main import main; main(['--help'])", HEAVY, id="edgeglm --help"),
        pytest.param("from edgeglm.cli.main import main; main(['doctor'])", HEAVY, id="edgeglm doctor"),
        pytest.param(IMPORT_ALL.format(rooms=["edgeglm.devices"]), HEAVY, id="edgeglm.devices"),
        pytest.param(IMPORT_ALL.format(rooms=["edgeglm.runtimes"]), HOST_ONLY, id="edgeglm.runtimes"),
    ],
)
def test_a_fresh_process_loads_nothing_unwanted(code: str, unwanted: tuple[str, ...]) -> None:
    report = f"{code}\nimport sys; print('loaded', [name for name in {unwanted} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", report], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout.splitlines()[-1:] == ["loaded []"], done.stderr


@pytest.mark.parametrize("arguments", [["--help"], ["--version"]])
def test_the_group_imports_no_command_it_does_not_run(arguments: list[str]) -> None:
    code = (
        f"from edgeglm.cli.main import COMMANDS, main, module_of; main({arguments}); import sys; "
        "print('loaded', [name for name in COMMANDS if module_of(name) in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "loaded []"
