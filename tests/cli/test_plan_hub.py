"""``edgeglm plan`` of a model on the hub: the headers of its weights by ranges of bytes, and no weight."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from edgeglm.cli.main import main
from tests.cli.commands import Done, run_loaded
from tests.cli.hub import Hub
from tests.export.tiny import Shape, save
from tests.loaded_workers import Loaded

NAME = "someone/Tiny-GLM"
# Large enough for a download to show, in two shards.
SHAPE = Shape("glm4", layers=2, width=1024, heads=16, kv_heads=2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    save(SHAPE, folder).save_pretrained(folder, max_shard_size="15MB")
    (folder / "model.safetensors").unlink()
    return folder


@pytest.fixture
def plan(loaded_workers: Loaded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Done]:
    """A command in a process of its own, since the hub's address is read once."""

    def run(hub: Hub, name: str = NAME, command: str = "plan") -> Done:
        environment = {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "0"}
        with monkeypatch.context() as there:
            there.chdir(tmp_path)
            for variable, value in environment.items():
                there.setenv(variable, value)
            return run_loaded(loaded_workers, command, name, "--target", "cpu", "--json")

    return run


@pytest.mark.parametrize("ranges", [True, False], ids=["ranges", "no ranges"])
def test_no_weight_is_downloaded(
    folder: Path, ranges: bool, plan: Callable[..., Done], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shards = sorted(path.name for path in folder.glob("*.safetensors"))
    assert len(shards) == 2
    hub = Hub(NAME, folder, ranges=ranges)
    assert main(["plan", str(folder), "--target", "cpu", "--json"]) == 0
    status, out, err = plan(hub)
    assert status == 0, err
    here, there = json.loads(capsys.readouterr().out), json.loads(out)
    assert {**there, "notes": 0} == {**here, "notes": 0}
    for shard in shards:
        # Of a server without ranges, what was on its way when it was hung up on was sent too.
        assert 0 < hub.sent[shard] <= (100_000 if ranges else 1 << 30)
        assert (folder / shard).stat().st_size > 1_000_000
    assert not list(tmp_path.rglob("*.safetensors"))


def test_a_name_that_the_hub_does_not_have_is_one_line(folder: Path, plan: Callable[..., Done]) -> None:
    status, _, err = plan(Hub(NAME, folder), "someone/other")
    assert (status, err.count("\n")) == (2, 1)
    assert err.startswith("edgeglm: someone/other: is no folder, and Hugging Face does not give it (")


def test_a_shard_that_is_not_there_is_one_line(folder: Path, plan: Callable[..., Done], tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in folder.iterdir():
        if not file.name.endswith("00002-of-00002.safetensors"):
            (copy / file.name).symlink_to(file)
    status, _, err = plan(Hub(NAME, copy))
    assert (status, err.count("\n")) == (6, 1), err
    assert f"{NAME}/model-00002-of-00002.safetensors: is missing, and 1 of the 2 files" in err


OTHERS = {
    "GGUF alone": (["glm-Q4_K_M.gguf", "README.md"], 3, "glm-Q4_K_M.gguf: is a model in GGUF, the format of llama.cpp"),
    "GGUF with a config": (["glm-Q4_K_M.gguf", "config.json"], 3, "glm-Q4_K_M.gguf: is a model in GGUF, the format of"),
    "a pickle": (["pytorch_model.bin", "config.json"], 3, "pytorch_model.bin: is a pickle, which can run code"),
    "nothing": (["README.md"], 2, "someone/Tiny-GLM: holds no config.json; "),
}


@pytest.mark.parametrize("command", ["plan", "export"])
@pytest.mark.parametrize(("names", "code", "told"), OTHERS.values(), ids=OTHERS)
def test_a_repository_without_safetensors_is_recognized_and_not_downloaded(
    names: list[str], code: int, told: str, command: str, plan: Callable[..., Done], tmp_path: Path
) -> None:
    repository = tmp_path / "repository"
    repository.mkdir()
    for name in names:
        (repository / name).write_text("{}" if name.endswith(".json") else "GGUF" * 1000)
    hub = Hub(NAME, repository)
    status, out, err = plan(hub, command=command)
    assert (status, out) == (code, "")
    (line,) = [line for line in err.splitlines() if line and "Fetching" not in line]
    assert line.startswith("edgeglm: ")
    assert NAME in line
    assert told in line
    assert {name for name in hub.sent if name} <= {"config.json"}
