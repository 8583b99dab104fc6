"""``edgeglm compress``: a smaller demo that plan, export and validate take, the last with the demo as its original."""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from edgeglm.bundle import read_manifest
from edgeglm.cli.main import main
from edgeglm.errors import EdgeglmError
from edgeglm.export.api import CompressRequest, Progress, compress
from edgeglm.export.checkpoint.lineage import LINEAGE
from edgeglm.export.checkpoint.locate import DEMO
from edgeglm.export.checkpoint.reader import Checkpoint
from edgeglm.export.checkpoint.tensor import Tensor
from edgeglm.export.samples.shipped import DATA
from tests.cli.commands import check_failure, left_of, run, start
from tests.export.quantized import gptq, save_quantized
from tests.export.tiny import SHAPES, save

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def smaller(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("compress") / "smaller"
    assert main(["compress", "-o", str(folder), "--prune", "40%", "--max-ram", "3GiB"]) == 0
    return folder


@pytest.fixture(scope="module")
def bundle(smaller: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundle") / "bundle"
    assert main(["export", str(smaller), "--target", "cpu", "--precision", "int8", "-o", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoints") / "tiny"
    save(SHAPES["glm"], folder)
    return folder


@pytest.mark.slow
def test_a_smaller_demo_is_whole_and_says_where_it_is_from(smaller: Path) -> None:
    assert {file.name for file in smaller.iterdir()} == {file.name for file in DEMO.iterdir()} | {LINEAGE}
    assert left_of(smaller) == ["smaller"]
    lineage = json.loads((smaller / LINEAGE).read_text())
    assert (lineage["original"], lineage["place"]) == ("edgeglm-demo", None)
    assert lineage["steps"][0]["command"] == {"prune": "40%", "by": "activations"}
    assert len(lineage["steps"][0]["kept"]["layers"]["vision"]) == 3
    config = json.loads((smaller / "config.json").read_text())
    assert config["text_config"]["intermediate_size"] < 640


@pytest.mark.slow
def test_its_bundle_is_compared_with_the_demo(bundle: Path, capsys: Capture) -> None:
    assert read_manifest(bundle).provenance.options["original"] == "edgeglm-demo"
    status, out, _ = run(capsys, "validate", bundle, "--limit", "8", "--accuracy-drop", "100%", "--json")
    found = {metric["name"]: metric for metric in json.loads(out)["metrics"]}
    assert status in (0, 4)
    assert found["step_success"]["reference"] == 1.0  # of the demo on its first screens
    assert found["step_success"]["artifact"] > 0  # garbage would have none


@pytest.mark.slow
def test_the_smaller_checkpoint_stands_for_its_original_and_another_one_is_refused(
    smaller: Path, bundle: Path, tmp_path: Path, capsys: Capture
) -> None:
    status, out, _ = run(
        capsys, "validate", bundle, "--reference", smaller, "--limit", "2", "--accuracy-drop", "100%", "--json"
    )
    assert status in (0, 4)
    assert {metric["name"]: metric for metric in json.loads(out)["metrics"]}["step_success"]["reference"] == 1.0
    other = shutil.copytree(smaller, tmp_path / "other")
    (other / LINEAGE).unlink()
    done = run(capsys, "validate", bundle, "--reference", other, "--limit", "2")
    check_failure(done, 2, "is not the checkpoint that the bundle's model was compressed from; give that one")


@pytest.mark.parametrize(
    ("options", "status", "why"),
    [
        ("--prune 100% --by l1", 2, "--prune 100%: would leave none of the 2 groups of heads"),
        ("--prune banana --by l1", 2, "--prune banana: 'banana' is not a percentage; write 40%"),
        ("--prune 40%", 2, "--calibration: is needed.*or choose --by l1"),
        ("--prune 40% --by l1 --calibration x.txt", 2, "--calibration: is not read by l1"),
        ("--prune 40% --by l2", 2, "l2"),
        ("--prune 40% --calibration missing.jsonl", 2, "missing.jsonl"),
        ("", 2, "--prune"),
    ],
)
def test_wrong_options_are_one_line_and_write_nothing(
    tiny: Path, tmp_path: Path, options: str, status: int, why: str, capsys: Capture
) -> None:
    target = tmp_path / "out"
    check_failure(run(capsys, "compress", tiny, "-o", target, *options.split()), status, why)
    assert left_of(target) == []


@pytest.mark.parametrize(
    "option", ["--epochs 3", "--learning-rate 1e-4", "--freeze vision", "--no-resume", "--distributed"]
)
def test_options_of_a_recovery_are_refused_without_one(option: str, tmp_path: Path, capsys: Capture) -> None:
    target = tmp_path / "out"
    done = run(capsys, "compress", "-o", target, "--prune", "40%", *option.split())
    check_failure(
        done, 2, f"{option.split(maxsplit=1)[0]}: is about a recovery, and none is asked for; give --distill FILE too"
    )
    assert left_of(target) == []


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"prune": "100%"}, "would leave fewer than 32 of the 640 MLP channels of the decoder"),
        ({"prune": "layers=9"}, "would leave none of the 4 layers of the decoder"),
        ({"prune": "heads=50%"}, "derives a head's size from the number of heads"),
        ({"prune": "40%", "distill": DATA / "calibration.jsonl", "max_ram": 800 << 20}, "is too little to recover"),
        ({"prune": "mlp=50%", "by": "l1", "max_ram": 300 << 20}, "300MiB is too little to compress edgeglm-demo"),
        ({"sparse": "2:4", "max_ram": 300 << 20}, "300MiB is too little to compress edgeglm-demo"),
    ],
)
def test_what_config_and_headers_refuse_is_refused_before_any_work(
    options: dict[str, Any], error: str, tmp_path: Path
) -> None:
    stages = list[Progress]()
    with pytest.raises(EdgeglmError) as refused:
        compress(CompressRequest(output=tmp_path / "out", **options), stages.append)
    assert error in str(refused.value)
    assert stages == []


def test_a_recovery_that_cannot_be_is_refused_before_anything_is_made(tmp_path: Path, capsys: Capture) -> None:
    target = tmp_path / "folder" / "out"
    words = tmp_path / "words.txt"
    words.write_text("words")
    options = ["compress", "-o", target, "--prune", "40%", "--by", "l1", "--distill"]
    check_failure(run(capsys, *options, words), 2, "words.txt: is not what the model reads")
    done = run(capsys, *options, DATA / "calibration.jsonl", "--max-ram", "800MiB")
    check_failure(done, 5, f"--max-ram: 800MiB is too little to recover {target}")
    assert [file.name for file in tmp_path.iterdir()] == ["words.txt"]


def test_a_quantized_checkpoint_becomes_a_plain_one_and_a_note_says_so(tmp_path: Path, capsys: Capture) -> None:
    (model := tmp_path / "model").mkdir()
    settings = {"quant_method": "gptq", "bits": 4, "group_size": 32}
    save_quantized(replace(SHAPES["glm"], layers=1), model, settings, gptq(4, 32))
    status, _, err = run(capsys, "compress", model, "-o", tmp_path / "out", "--prune", "mlp=20%", "--by", "l1")
    assert status == 0
    assert "note: 6 quantized matrices are written unquantized: compress the original instead" in err
    assert "quantization_config" not in json.loads((tmp_path / "out" / "config.json").read_text())
    assert all(isinstance(tensor, Tensor) for tensor in Checkpoint.open(tmp_path / "out").tensors.values())


def test_a_folder_that_exists_stays(tiny: Path, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "mine").write_text("mine")
    check_failure(run(capsys, "compress", tiny, "-o", tmp_path, "--prune", "40%", "--by", "l1"), 2, "exists already")
    inside = tiny / "smaller"
    check_failure(run(capsys, "compress", tiny, "-o", inside, "--prune", "40%", "--by", "l1"), 2, "own folder")
    assert (tmp_path / "mine").read_text() == "mine"


@pytest.mark.slow
def test_a_killed_run_leaves_no_checkpoint_and_the_next_one_is_whole(
    tiny: Path, tmp_path: Path, capsys: Capture
) -> None:
    target = tmp_path / "out"
    partial = tmp_path / "out.partial"
    for _ in range(10):  # a run that ends before it is seen to work was killed too late
        process = start("compress", tiny, "-o", target, "--prune", "40%", "--by", "l1")
        try:
            while process.poll() is None and not (partial / "work").exists():
                time.sleep(0.001)
        finally:
            process.kill()
            process.communicate()
        if not target.exists():
            break
        shutil.rmtree(target)
    assert not target.exists()
    assert run(capsys, "compress", tiny, "-o", target, "--prune", "40%", "--by", "l1")[0] == 0
    assert left_of(target) == ["out"]
    # A smaller checkpoint of a smaller one keeps the first original.
    assert run(capsys, "compress", target, "-o", tmp_path / "less", "--prune", "layers=1", "--by", "l1")[0] == 0
    lineage = json.loads((tmp_path / "less" / LINEAGE).read_text())
    assert lineage["original"] == "tiny"
    assert lineage["place"] == str(tiny)
    assert [step["command"]["prune"] for step in lineage["steps"]] == ["40%", "layers=1"]


@pytest.mark.slow
def test_a_killed_recovery_goes_on_to_a_checkpoint_that_exports(tmp_path: Path, capsys: Capture) -> None:
    lines = (DATA / "calibration.jsonl").read_text().splitlines(keepends=True)[:32]
    data, target = tmp_path / "samples.jsonl", tmp_path / "out"
    data.write_text("".join(lines))
    shutil.copytree(DATA / "calibration", tmp_path / "calibration")
    options = ("-o", target, "--prune", "mlp=20%", "--by", "l1", "--distill", data, "--epochs", "1")
    process, work = start("compress", *options), tmp_path / "out.partial" / "work"
    try:
        while process.poll() is None and not (work / "state.pt").exists():
            time.sleep(0.05)
    finally:
        process.kill()
        process.communicate()
    assert not target.exists()
    status, out, _ = run(capsys, "compress", *options, "--json")
    assert status == 0
    assert left_of(target) == ["out"]
    recovery = json.loads(out)["recovery"]
    assert len(recovery) == 2
    assert all(0 < score <= 1 for score in recovery)
    assert json.loads((target / LINEAGE).read_text())["original"] == "edgeglm-demo"
    assert run(capsys, "plan", target, "--target", "cpu", "--precision", "int8")[0] == 0
