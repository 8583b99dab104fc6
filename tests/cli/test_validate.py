"""``edgeglm validate``: an exact bundle passes, a spoilt one fails loudly, and few samples prove nothing."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from safetensors.torch import load_file, save_file

from edgeglm.cli.main import main
from edgeglm.export.checkpoint.locate import DEMO
from edgeglm.export.samples.shipped import DATA
from tests.runtimes.demo import demo_bundle


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return demo_bundle(tmp_path_factory.mktemp("demo") / "bundle", "cpu", "fp32")


@pytest.mark.slow
def test_a_bundle_in_fp32_loses_nothing(demo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert main(["validate", str(demo), "--limit", "24", "--accuracy-drop", "20%", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["passed"] is True
    assert (result["bundle"], result["samples"]) == (str(demo), 24)
    names = [metric["name"] for metric in result["metrics"]]
    assert names == ["action_type", "step_success", "tap_hit", "median_tap_error"]
    for metric in result["metrics"]:
        assert metric["drop"] == pytest.approx(0, abs=1e-9)
        assert metric["reference"] == metric["artifact"]
        assert {"name", "reference", "artifact", "drop", "limit", "passed"} <= metric.keys()


def test_few_samples_are_not_passed_quietly(demo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page, data = tmp_path / "page.html", tmp_path / "few.jsonl"
    first, *others = (DATA / "evaluation.jsonl").read_text(encoding="utf-8").splitlines()[:12]
    corner = {"target": '<think>Tap.</think><answer>do(action="Tap", element=[0,0])</answer>', "box": [0, 0, 1, 1]}
    data.write_text("\n".join([json.dumps(json.loads(first) | corner), *others]), encoding="utf-8")
    (tmp_path / "evaluation").mkdir()
    for index in range(12):
        shutil.copy(DATA / f"evaluation/{index:04d}.webp", tmp_path / "evaluation")
    assert main(["validate", str(demo), "--data", str(data), "--report", str(page)]) == 4
    captured = capsys.readouterr()
    assert "12 samples are too few to tell: action_type drops by 0.00%, but it may be 25.00%" in captured.err
    assert captured.err.strip().endswith("give about 150 samples")
    assert "unclear" in captured.out
    # The page is written all the same, with the memory of an answer, and what both got wrong.
    text = page.read_text()
    assert "edgeglm-demo on" in text
    assert text.count("150 samples would tell") == 3
    assert text.count('<figure class="case">') == text.count("data:image/webp;base64,") >= 1
    measured, predicted = re.findall(r"One answer on this machine, \d+ tokens.*?([\d.]+)MiB.*?([\d.]+)MiB", text)[0]
    assert float(predicted) / 2 < float(measured) < 2 * float(predicted)


@pytest.mark.slow
def test_a_model_that_lost_its_task_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spoilt = tmp_path / "spoilt"
    shutil.copytree(DEMO, spoilt)
    weights = load_file(spoilt / "model.safetensors")
    name = "model.language_model.layers.2.self_attn.o_proj.weight"
    weights[name] = torch.zeros_like(weights[name])
    save_file(weights, spoilt / "model.safetensors", {"format": "pt"})
    assert main(["export", str(spoilt), "--target", "cpu", "--precision", "fp32", "-o", str(tmp_path / "b")]) == 0
    arguments = ["validate", str(tmp_path / "b"), "--limit", "24"]
    assert main(arguments) == 2
    assert "--reference: is needed for spoilt; give the checkpoint it was made from" in capsys.readouterr().err
    data = ["--reference", str(DEMO), "--data", str(DATA / "evaluation.jsonl")]
    assert main([*arguments, *data]) == 4
    assert "more than 2.00%; export it in a higher precision" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "code", "line"),
    [
        (["--data", "nowhere.jsonl"], 2, "nowhere.jsonl: cannot be read"),
        (["--accuracy-drop", "200%"], 2, "--accuracy-drop 200%: is more than 100%"),
        (["--reference", "nowhere"], 2, "nowhere"),
        (["--limit", "0"], 2, "validate: "),
        (["--report", "nowhere/page.html"], 2, "nowhere/page.html: its folder is not there"),
    ],
    ids=str,
)
def test_what_a_user_may_get_wrong(
    demo: Path, arguments: list[str], code: int, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert main(["validate", str(demo), *arguments]) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"edgeglm: {line}")
    assert captured.err.count("\n") == 1
