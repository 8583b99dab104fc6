"""Two processes that torchrun starts learn as one does, and what one has stored the others go on with."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from edgeglm.export.checkpoint.locate import DEMO
from edgeglm.export.compress.teacher import Teacher
from edgeglm.process import run_program
from tests.cli.commands import ROOT, check_failure, run
from tests.export.compress.learn import STEPS, VOCABULARY, prepare, store
from tests.export.tiny import SHAPES, save

pytestmark = pytest.mark.slow
# As `torchrun --standalone --nproc-per-node 2 -m`: a port of its own. Its processes end with it, and it with us.
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m")
LEARN = "tests.export.compress.learn"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A small model of which some weights are zero, and its teacher's logits."""
    model = save(SHAPES["glm-tied-one-head"], tmp_path / "model")
    weight = model.model.layers[0].mlp.down_proj.weight.data
    weight[:, ::2] = 0
    model.save_pretrained(tmp_path / "model")
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "model" / file).write_bytes((DEMO / file).read_bytes())
    store(Teacher(tmp_path / "teacher.bin", VOCABULARY, prepare()[1]))
    return tmp_path


def learn(folder: Path, *options: str, together: bool) -> dict[str, Any]:
    """What a process has learned, or two."""
    before = TORCHRUN if together else ("-m",)
    done = run_program(
        [sys.executable, *before, LEARN, str(folder), *(["together"] if together else []), *options], cwd=ROOT
    )
    assert done.code == 0, done.err
    found: dict[str, Any] = torch.load(folder / ("together" if together else "alone") / "learned.pt", weights_only=True)
    assert found["size"] == 1 + together
    return found


def test_two_processes_learn_what_one_does_and_keep_zeros(folder: Path) -> None:
    one, two = learn(folder, together=False), learn(folder, together=True)
    assert two["losses"] == pytest.approx(one["losses"], rel=1e-4)
    assert len(one["losses"]) == STEPS
    assert set(one["weights"]) == set(two["weights"])
    for name, value in one["weights"].items():
        assert torch.allclose(value, two["weights"][name], atol=1e-4), name
    down = two["weights"]["model.layers.0.mlp.down_proj.weight"]
    assert (down[:, ::2] == 0).all()
    assert (down[:, 1::2] != 0).all()


def test_what_two_processes_stored_one_goes_on_with(folder: Path) -> None:
    whole = learn(folder, together=False)
    first = learn(folder, "keep", together=True)
    (folder / "alone" / "state.pt").write_bytes((folder / "together" / "state.pt").read_bytes())
    rest = learn(folder, together=False)
    assert [*first["losses"], *rest["losses"]] == pytest.approx(whole["losses"], rel=1e-4)
    for name, value in whole["weights"].items():
        assert torch.allclose(value, rest["weights"][name], atol=1e-4), name


def test_without_torchrun_it_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ("compress", "-o", tmp_path / "out", "--prune", "40%", "--distributed")
    check_failure(
        run(capsys, *options), 2, "--distributed: shares out a recovery, and none is asked for; give --distill"
    )
    done = run(capsys, *options, "--distill", tmp_path / "samples.jsonl")
    check_failure(done, 2, "--distributed: was not started by torchrun; run torchrun --nproc-per-node 2 -m edgeglm")
