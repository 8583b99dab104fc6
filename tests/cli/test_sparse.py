"""``edgeglm compress --sparse``: an ordinary checkpoint with zeros, and what is said of them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from edgeglm.cli.main import main
from edgeglm.devices.loader import load_profile
from edgeglm.export.checkpoint.lineage import LINEAGE
from edgeglm.export.checkpoint.locate import DEMO
from edgeglm.export.checkpoint.reader import Checkpoint
from edgeglm.export.compress.sparsity import Sparse, sparse_by_size
from edgeglm.export.compress.zeros import parse_sparse
from edgeglm.export.prepare.preparation import open_export
from edgeglm.export.prepare.types import Request
from edgeglm.export.quantize.rounding import Floats
from edgeglm.export.samples.shipped import DATA
from tests.cli.commands import check_failure, left_of, run
from tests.export.tiny import SHAPES, save

Capture = pytest.CaptureFixture[str]
BLOCKS = ("model.language_model.layers.", "model.visual.blocks.")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoints") / "tiny"
    save(SHAPES["glm"], folder)
    return folder


@pytest.fixture(scope="module")
def sparse(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo made sparse on four of its samples."""
    folder = tmp_path_factory.mktemp("sparse")
    lines = (DATA / "calibration.jsonl").read_text().splitlines(keepends=True)[:4]
    (folder / "samples.jsonl").write_text("".join(lines))
    shutil.copytree(DATA / "calibration", folder / "calibration")
    out = folder / "sparse"
    assert main(["compress", "-o", str(out), "--sparse", "2:4", "--calibration", str(folder / "samples.jsonl")]) == 0
    return out


def matrices(folder: Path, blocks: tuple[str, ...]) -> Iterator[tuple[str, Floats, bool]]:
    """Yield all matrices of a checkpoint, and whether each is a block's."""
    checkpoint = Checkpoint.open(folder)
    for name, tensor in checkpoint.tensors.items():
        if len(tensor.shape) == 2:
            yield name, checkpoint.rows(name), name.startswith(blocks)


@pytest.mark.slow
def test_two_of_four_are_zero_in_every_block_and_others_make_up_for_them(sparse: Path) -> None:
    original, updated = Checkpoint.open(DEMO), 0
    for name, values, inside in matrices(sparse, BLOCKS):
        if not inside:
            assert np.array_equal(values, original.rows(name)), name
            continue
        assert ((values.reshape(len(values), -1, 4) == 0).sum(2) >= 2).all(), name
        updated += not np.isin(values, [0]).all() and not np.allclose(
            values[values != 0], original.rows(name)[values != 0]
        )
    assert updated == sum(inside for *_, inside in matrices(sparse, BLOCKS))
    assert {file.name for file in sparse.iterdir()} == {file.name for file in DEMO.iterdir()} | {LINEAGE}
    step = json.loads((sparse / LINEAGE).read_text())["steps"][0]
    assert step["command"] == {"sparse": "2:4", "by": "activations"}
    assert set(step["kept"]["zeros"]) == {"decoder", "vision"}


@pytest.mark.slow
def test_what_zeros_bring_is_said_by_target(sparse: Path, capsys: Capture) -> None:
    for target, precision, said in (
        ("jetson", "fp16", "tells TensorRT that it may skip zeros of the vision and the decoder"),
        ("jetson", "int4", "bring neither size nor speed here"),
        ("cpu", "int8", "bring neither size nor speed here"),
    ):
        opened = open_export(Request(sparse, "sparse", load_profile(target), precision))
        assert [said in note for note in opened.notes if "sparse weights 2:4" in note] == [True], target


def test_a_share_of_the_largest_weights_stays_and_pruning_it_again_is_refused(
    tiny: Path, tmp_path: Path, capsys: Capture
) -> None:
    out = tmp_path / "out"
    status, said, _ = run(capsys, "compress", tiny, "-o", out, "--sparse", "25%", "--by", "l1", "--json")
    assert status == 0
    weights = json.loads(said)["parts"]["decoder"]["weights"]
    assert weights["after"] / weights["before"] == pytest.approx(0.75, abs=1e-3)
    original = Checkpoint.open(tiny)
    for name, values, inside in matrices(out, ("model.layers.",)):
        before = original.rows(name)
        assert np.array_equal(values[values != 0], before[values != 0]), name
        assert (values == 0).mean() == pytest.approx(0.25 if inside else 0, abs=1e-3), name
    for option in (("--prune", "40%"), ("--sparse", "50%")):
        again = run(capsys, "compress", out, "-o", tmp_path / "again", *option, "--by", "l1")
        check_failure(again, 2, "is sparse, and would lose its zeros; prune first")
        assert left_of(tmp_path / "again") == []


def test_a_product_with_a_sparse_matrix_is_that_of_its_values(tiny: Path, tmp_path: Path) -> None:
    checkpoint, name = Checkpoint.open(tiny), "model.layers.0.mlp.down_proj.weight"
    made = Sparse(checkpoint, parse_sparse("2:4"), tmp_path)
    x = np.ones((2, checkpoint.find(name).shape[1]), np.float32)
    dense, shape = made.product(x, name), checkpoint.find(name).shape
    sparse_by_size({"decoder": {name: (shape[0], shape[1])}}, made)
    values = np.fromfile(made.files[name], np.float32).reshape(checkpoint.find(name).shape)
    assert np.allclose(made.product(x, name), x @ values.T)
    assert not np.allclose(made.product(x, name), dense)
    assert made.zeros[name] == values.size // 2


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ("--sparse 2:3", "--sparse 2:3: is not the pattern of which GPUs skip half; write 2:4, or a share"),
        ("--sparse 0%", "makes no weight zero"),
        ("--sparse 100%", "makes all weights zero"),
        ("--sparse 2:4 --prune 40%", "--sparse: is a run of its own.*give --prune alone, then --sparse"),
        ("", "compress: is not told what to remove; give --prune 40%, --sparse"),
    ],
)
def test_wrong_patterns_are_one_line_and_write_nothing(
    tiny: Path, tmp_path: Path, options: str, why: str, capsys: Capture
) -> None:
    target = tmp_path / "out"
    check_failure(run(capsys, "compress", tiny, "-o", target, "--by", "l1", *options.split()), 2, why)
    assert left_of(target) == []
