"""The mean of checkpoints."""

from __future__ import annotations

from pathlib import Path
from shutil import copytree

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

import click
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

from edgeglm.export.checkpoint.locate import DEMO
from edgeglm.export.demo.average import main, mean


def test_a_mean_lies_between(tmp_path: Path) -> None:
    weights = load_file(DEMO / "model.safetensors")
    other = copytree(DEMO, tmp_path / "other")
    save_file({name: tensor * 3 for name, tensor in weights.items()}, other / "model.safetensors", {"format": "pt"})
    done = CliRunner().invoke(main, [str(DEMO), str(other), "--out", str(tmp_path / "mean")], catch_exceptions=False)
    assert done.exit_code == 0
    made = load_file(tmp_path / "mean/model.safetensors")
    assert made.keys() == weights.keys()
    for name, tensor in made.items():
        assert tensor.dtype == weights[name].dtype
        torch.testing.assert_close(tensor.float(), weights[name].float() * 2, rtol=2e-3, atol=1e-6)
    for name in ("tokenizer.json", "generation_config.json"):
        assert (tmp_path / "mean" / name).read_bytes() == (DEMO / name).read_bytes()


def test_other_shapes_have_no_mean() -> None:
    with pytest.raises(click.UsageError, match="not of one shape"):
        mean([{"a": torch.zeros(2)}, {"a": torch.zeros(3)}])
