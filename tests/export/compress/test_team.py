"""Two processes that torchrun starts learn as one does, and one goes on with what they have stored."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from edgeglm.export.checkpoint.locate import DEMO
from edgeglm.export.compress.teacher import Teacher
from edgeglm.export.compress.team import ALONE
from edgeglm.process import run_program
from tests.cli.commands import ROOT, check_failure, run
from tests.export.compress.learn import STEPS, STORED, TOGETHER, VOCABULARY, learn, prepare, store
from tests.export.tiny import SHAPES, save

# `torchrun --standalone --nproc-per-node 2 -m`: a port of its own. It ends with us, and its two processes with it.
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A small model of which some weights are zero, and its teacher's logits."""
    model = save(SHAPES["glm-tied-one-head"], tmp_path / "model")
    model.model.layers[0].mlp.down_proj.weight.data[:, ::2] = 0
    model.save_pretrained(tmp_path / "model")
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "model" / file).write_bytes((DEMO / file).read_bytes())
    for work in (TOGETHER, "alone"):
        (tmp_path / work).mkdir()
    store(Teacher(tmp_path / "teacher.bin", VOCABULARY, prepare()[1]))
    return tmp_path


@pytest.mark.slow
def test_two_processes_learn_what_one_does_and_one_goes_on_with_it(folder: Path) -> None:
    done = run_program([*TORCHRUN, "tests.export.compress.learn", str(folder)], cwd=ROOT)
    assert done.code == 0, done.err
    two = torch.load(folder / TOGETHER / "learned.pt", weights_only=True)
    one, rest = learn(folder, folder / "alone", ALONE), learn(folder, folder / TOGETHER, ALONE)
    assert (one["size"], two["size"]) == (1, 2)
    assert len(one["losses"]) == STEPS
    assert two["losses"] == pytest.approx(one["losses"], rel=1e-4)
    assert rest["losses"] == pytest.approx(one["losses"][STORED:], rel=1e-4)
    for name, value in one["weights"].items():
        assert torch.allclose(two["weights"][name], value, atol=1e-4), name
        assert torch.allclose(rest["weights"][name], value, atol=1e-4), name
    down = two["weights"]["model.layers.0.mlp.down_proj.weight"]
    assert (down[:, ::2] == 0).all()
    assert (down[:, 1::2] != 0).all()


def test_without_torchrun_it_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ("compress", "-o", tmp_path / "out", "--prune", "40%", "--distributed")
    done = run(capsys, *options, "--distill", tmp_path / "samples.jsonl")
    check_failure(done, 2, "--distributed: was not started by torchrun; run torchrun --nproc-per-node 2 -m edgeglm")
