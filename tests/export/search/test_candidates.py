"""Smaller checkpoints that a search chooses among: who may be one, and those that it prunes itself."""

from __future__ import annotations

import shutil
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import msgspec
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("optuna")

from edgeglm.errors import UsageError
from edgeglm.export.checkpoint.lineage import read_lineage
from edgeglm.export.compress.compress import compress
from edgeglm.export.pipeline.job import Job
from edgeglm.export.pipeline.opening import open_job
from edgeglm.export.requests import CompressRequest, SearchRequest
from edgeglm.export.search.aim import aim_of
from edgeglm.export.search.candidates import with_pruned
from edgeglm.export.search.trials import searching
from tests.cli.test_validate_text import write_text, write_tokenizer
from tests.export.tiny import SHAPES, build

BUDGET = 2 << 30


def write_model(folder: Path, seed: int) -> Path:
    build(SHAPES["glm4"], seed).save_pretrained(folder)
    write_tokenizer(folder / "tokenizer.json")
    return folder


def prune(model: Path, output: Path) -> Path:
    compress(CompressRequest(model=str(model), output=output, prune="mlp=50%", by="l1"), BUDGET, lambda _: None)
    return output


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("candidates")
    write_text(folder / "text.txt", 36)
    for seed, name in enumerate(("model", "other")):
        prune(write_model(folder / name, seed), folder / f"smaller-{name}")
    return folder


def search_of(folder: Path, **options: object) -> tuple[Job, SearchRequest]:
    text, model, output = folder / "text.txt", str(folder / "model"), folder / "bundle"
    request = SearchRequest(
        target="cpu", model=model, accuracy_drop=0.4, calibration=text, output=output, **options  # type: ignore[arg-type]
    )  # fmt: skip
    return open_job(request, BUDGET), request


def test_candidates_are_checkpoints_that_were_compressed_from_the_model(folder: Path) -> None:
    job, request = search_of(folder, also=(str(folder / "smaller-model"),))
    _, aim = aim_of(job, request)
    assert aim.models == {"smaller-model": folder / "smaller-model"}
    assert aim.options == {"equalization": ("on",), "model": ["", "smaller-model"]}
    _, alone = aim_of(*search_of(folder))
    assert alone.identity != aim.identity


def test_a_model_that_has_moved_is_the_original_all_the_same(folder: Path, tmp_path: Path) -> None:
    """What is pruned names a place where MODEL no longer is; MODEL itself is there to compare with."""
    model = write_model(tmp_path / "model", 0)
    smaller = prune(model, tmp_path / "smaller")
    moved = model.rename(tmp_path / "moved")
    _, request = search_of(folder, also=(str(smaller),))
    request = msgspec.structs.replace(request, model=str(moved))
    _, aim = aim_of(open_job(request, BUDGET), request)
    assert aim.models == {"smaller": smaller}
    alone = msgspec.structs.replace(request, model=str(smaller), also=())
    with pytest.raises(UsageError, match="which is not there; put it back, or take the original for MODEL"):
        aim_of(open_job(alone, BUDGET), alone)[0].expected()


def test_a_study_is_of_all_weights_and_versions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fine-tuned model differs from its base between the ends of its files; another version made other bundles."""
    (model := tmp_path / "model").mkdir()
    build(replace(SHAPES["glm4"], vocabulary=8192)).save_pretrained(model)
    write_tokenizer(model / "tokenizer.json")
    write_text(tmp_path / "text.txt", 36)
    before = aim_of(*search_of(tmp_path))[1].identity
    copy = shutil.copytree(model, tmp_path / "copy" / "model")
    weights = copy / "model.safetensors"
    shutil.copy(tmp_path / "text.txt", copy.parent)
    assert aim_of(*search_of(copy.parent))[1].identity == before
    with weights.open("r+b") as file:
        file.seek(weights.stat().st_size // 2)
        file.write(b"\0\0\0\0")
    assert aim_of(*search_of(copy.parent))[1].identity != before
    monkeypatch.setattr(metadata, "version", lambda name: "0.0")
    assert aim_of(*search_of(tmp_path))[1].identity != before


@pytest.mark.parametrize(
    ("also", "why"),
    [
        (("smaller-other",), "was compressed from other, which model is not; give one that edgeglm compress made"),
        (("other",), "does not say that it was compressed from model"),
        (("smaller-model", "smaller-model"), "is called smaller-model, as another one is"),
        (("nowhere",), "nowhere"),
    ],
)
def test_what_is_none_is_refused(also: tuple[str, ...], why: str, folder: Path) -> None:
    job, request = search_of(folder, also=tuple(str(folder / name) for name in also))
    with pytest.raises(UsageError, match=why):
        aim_of(job, request)


def test_a_rate_is_pruned_once_and_by_these_samples(folder: Path) -> None:
    job, request = search_of(folder, prune=("30%",))
    study = folder / "study"
    made = with_pruned(job, request, study, lambda _: None)
    pruned = folder / "study.models" / "pruned-30%"
    assert (made.also, made.prune) == ((str(pruned),), ())
    lineage = read_lineage(pruned)
    assert lineage is not None
    assert lineage.original == "model"
    before = (pruned / "model.safetensors").stat().st_mtime_ns
    assert with_pruned(job, request, study, lambda _: None) == made
    assert (pruned / "model.safetensors").stat().st_mtime_ns == before
    write_text(folder / "text-2.txt", 40)
    others = msgspec.structs.replace(request, calibration=folder / "text-2.txt")
    (folder / "text-2.txt").write_text((folder / "text-2.txt").read_text()[100:])
    with pytest.raises(UsageError, match="was not pruned by this rate and these samples"):
        with_pruned(job, others, study, lambda _: None)


def test_a_wrong_rate_is_refused_before_anything_is_pruned(folder: Path, tmp_path: Path) -> None:
    job, request = search_of(folder, prune=("30%", "all"))
    with pytest.raises(UsageError, match="--prune all"):
        with_pruned(job, request, tmp_path / "study", lambda _: None)
    assert list(tmp_path.iterdir()) == []


def test_a_rate_that_leaves_nothing_is_refused_before_another_is_pruned(folder: Path, tmp_path: Path) -> None:
    job, request = search_of(folder, prune=("mlp=50%", "layers=3"))
    with pytest.raises(UsageError, match="--prune layers=3: would leave none of the 3 layers"):
        with_pruned(job, request, tmp_path / "study", lambda _: None)
    assert [*tmp_path.iterdir()] == []


def test_another_option_that_is_wrong_is_refused_before_anything_is_pruned(folder: Path, tmp_path: Path) -> None:
    job, request = search_of(folder, prune=("mlp=50%",), formats=("gguf",), study=tmp_path / "study")
    with pytest.raises(UsageError, match="--formats gguf: is no format"):
        searching(job, request, lambda _: None)
    assert [*tmp_path.iterdir()] == []
