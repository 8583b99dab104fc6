"""Every engine's folder offers the same functions, and is imported where a module of the engine is opened, only."""

from __future__ import annotations

import importlib
import inspect
import json
import subprocess
import sys
from pathlib import Path

import pytest

from edgeglm.bundle import load_bundle
from edgeglm.engines import ENGINES, EngineName
from edgeglm.errors import DamagedFileError
from edgeglm.runtimes.core.session import EngineModule
from edgeglm.runtimes.engines.litert.file import File
from edgeglm.runtimes.engines.ort.described import as_described
from edgeglm.runtimes.engines.ort.engine import Encoder
from tests.extras import need_tflite

FUNCTIONS = ("available", "place", "note", "version", "open_encoder", "open_decoder")
LIBRARIES = ("onnxruntime", "onnxruntime_qnn", "ai_edge_litert", "tensorrt", "tensorrt_rtx")
PICTURE = Path(__file__).parents[3] / "export/demo/data/evaluation/0000.webp"
RUN = """
import sys
from edgeglm.cli.main import main
main(["run", sys.argv[1], "--prompt", "Select OK", "--image", sys.argv[2], "--max-new-tokens", "2", "--json"])
import json
engines = {name.split(".")[3] for name in sys.modules if name.startswith("edgeglm.runtimes.engines.")}
libraries = [name for name in sys.argv[3:] if name in sys.modules]
print("\\nloaded", json.dumps([sorted(engines), libraries]))
"""


@pytest.mark.parametrize("engine", ENGINES)
def test_an_engine_has_the_functions_of_the_interface(engine: EngineName) -> None:
    module = importlib.import_module(f"edgeglm.runtimes.engines.{engine}.engine")
    for name in FUNCTIONS:
        expected = list(inspect.signature(getattr(EngineModule, name)).parameters.values())[1:]
        assert list(inspect.signature(getattr(module, name)).parameters.values()) == expected, name


def test_every_folder_is_in_the_table() -> None:
    folder = Path(importlib.import_module("edgeglm.runtimes.engines").__file__ or "").parent
    assert {path.name for path in folder.iterdir() if (path / "__init__.py").exists()} == ENGINES.keys()


@pytest.mark.parametrize(
    ("bundle", "engine", "library"), [("exact", "ort", "onnxruntime"), ("exact_tflite", "litert", "ai_edge_litert")]
)
def test_a_bundle_loads_its_own_engine_and_no_other(
    request: pytest.FixtureRequest, bundle: str, engine: EngineName, library: str
) -> None:
    folder: Path = request.getfixturevalue(bundle)
    command = [sys.executable, "-c", RUN, str(folder), str(PICTURE), *LIBRARIES]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("loaded")]
    assert json.loads(line.removeprefix("loaded")) == [[engine], [library]]


def test_a_graph_that_the_manifest_does_not_describe_is_refused(exact: Path) -> None:
    bundle = load_bundle(exact)
    decoder, vision = (bundle.path(f"{name}/model.onnx") for name in ("decoder", "vision"))
    described = bundle.module("vision")
    assert described
    as_described(vision, described, lambda: Encoder(vision, 1)).close()
    with pytest.raises(DamagedFileError, match="has other inputs than the manifest lists"):
        as_described(decoder, described, lambda: Encoder(decoder, 1))


def test_a_file_that_is_no_tflite_is_refused(tmp_path: Path) -> None:
    need_tflite()
    (tmp_path / "file.tflite").write_bytes(bytes(64))
    with pytest.raises(DamagedFileError, match=r"LiteRT .* cannot load it"):
        File(tmp_path / "file.tflite", 1, None)
