"""``edgeglm validate`` on a text: a text model's bundle against the original, both teacher-forced."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

from edgeglm.bundle import read_manifest
from edgeglm.cli.main import main
from edgeglm.export.demo.samples import write_samples
from tests.cli.commands import check_failure, run
from tests.export.tiny import SHAPES, save

WORDS = "the bundle of a model is what it answers and nothing else".split()
PREFIX = ("!", "~")


def write_tokenizer(file: Path) -> None:
    """A token a byte, and two before every text, as GLM's tokenizers do with [gMASK]<sop>."""
    alphabet = {letter: number for number, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(alphabet, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = [(letter, alphabet[letter]) for letter in PREFIX]
    tokenizer.post_processor = processors.TemplateProcessing(f"{' '.join(PREFIX)} $A", None, special)
    tokenizer.save(str(file))


def write_text(file: Path, lines: int) -> None:
    """Twelve words a line."""
    draw = random.Random(0)
    file.write_text("\n".join(" ".join(draw.choices(WORDS, k=12)) for _ in range(lines)), encoding="utf-8")


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("text") / "text.txt"
    write_text(file, 64)
    return file


@pytest.fixture(scope="module", params=["glm", "glm4"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint and its bundles in fp32 and int4."""
    folder: Path = tmp_path_factory.mktemp(request.param)
    save(SHAPES[request.param], folder / "model")
    write_tokenizer(folder / "model" / "tokenizer.json")
    for precision in ("fp32", "int4"):
        options = ["--target", "cpu", "--precision", precision, "-o", str(folder / precision)]
        assert main(["export", str(folder / "model"), *options]) == 0
    return folder


def test_a_bundle_in_fp32_agrees_with_transformers(model: Path, text: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [model / "fp32", "--data", text, "--reference", model / "model", "--limit", 8, "--json"]
    status, out, _ = run(capsys, "validate", *arguments)
    result = json.loads(out)
    perplexity, agreement = result["metrics"]
    assert (status, result["samples"], result["passed"]) == (0, 8, True)
    assert (perplexity["name"], agreement["name"]) == ("perplexity", "top_1_agreement")
    assert perplexity["drop"] == pytest.approx(0, abs=1e-5)
    assert agreement["reference"] == 1
    assert agreement["artifact"] >= 1 - 1 / 2048  # one token may stand on the fence
    # The same by hand: windows of 256 tokens behind the tokenizer's own beginning.
    original = transformers.AutoModelForCausalLM.from_pretrained(model / "model", dtype=torch.float32)
    tokenizer = Tokenizer.from_file(str(model / "model" / "tokenizer.json"))
    tokens = tokenizer.encode(text.read_text(), add_special_tokens=False).ids[: 8 * 256]
    windows = torch.tensor(tokens).view(8, 256)
    begin = torch.tensor(tokenizer.encode("").ids).expand(8, 2)
    with torch.inference_mode():
        logits = original(input_ids=torch.cat([begin, windows], 1)).logits[:, 1:-1].float()
    loss = torch.nn.functional.cross_entropy(logits.reshape(-1, 256), windows.reshape(-1))
    assert perplexity["reference"] == pytest.approx(loss.exp().item(), rel=1e-5)


def test_what_int4_loses_of_random_weights_fails(
    model: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.html"
    arguments = [model / "int4", "--data", text, "--reference", model / "model", "--report", page]
    status, out, error = run(capsys, "validate", *arguments)
    assert status == 4
    assert [line.split()[0] for line in out.splitlines()] == ["METRIC", "perplexity", "top_1_agreement"]
    passages = re.findall(
        r'<td class="wrap">(.*?)<td class="number">([\d.]+)<td class="number">([\d.]+)', page.read_text()
    )
    rises = [float(ours) / float(theirs) for _, theirs, ours in passages]
    assert len(rises) == 5
    assert rises == sorted(rises, reverse=True)
    assert rises[0] > rises[-1]
    assert all(words.split()[1] in WORDS for words, _, _ in passages)
    assert "more than 2.00%; export it in a higher precision" in error


@pytest.mark.parametrize("model", ["glm4"], indirect=True)
def test_the_ladder_of_a_text_model_ends_between_int4_and_fp16(
    model: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--target", "cpu", "--precision", "int4", "--calibration", text, "--accuracy-drop", "5%"]
    status, out, _ = run(capsys, "export", model / "model", *options, "-o", tmp_path / "bundle", "--json")
    result = json.loads(out)
    first, *_, last = result["ladder"]
    assert (status, first["passed"], last["passed"] or result["ladder"][-2]["passed"]) == (0, False, True)
    assert [metric["name"] for metric in first["metrics"]] == ["perplexity", "top_1_agreement"]
    assert first["bundle_bytes"] < result["bundle_bytes"]
    measured = read_manifest(tmp_path / "bundle").measured
    assert measured
    assert all(metric.passed for metric in measured.metrics)
    assert measured.sensitivity


def test_int4_of_a_text_model_errs_less_when_calibrated(
    model: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--target", "cpu", "--precision", "int4", "--calibration", text, "-o", tmp_path / "bundle"]
    assert run(capsys, "export", model / "model", *options)[0] == 0
    plain, calibrated = (read_manifest(folder).modules[1] for folder in (model / "int4", tmp_path / "bundle"))
    assert plain.max_relative_error is not None
    assert calibrated.max_relative_error is not None
    assert calibrated.max_relative_error < plain.max_relative_error


def test_a_text_is_not_for_a_model_that_sees(text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done = run(capsys, "export", "--target", "cpu", "--calibration", text, "-o", tmp_path / "bundle")
    check_failure(done, 3, r"takes images; give samples \(\.jsonl\)")
    assert not (tmp_path / "bundle").exists()


def test_a_calibration_text_that_is_too_short_is_refused(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "short.txt"
    file.write_text("too short")
    done = run(capsys, "export", model / "model", "--target", "cpu", "--calibration", file, "-o", tmp_path / "bundle")
    check_failure(done, 2, r"short\.txt: has 9 tokens, 0 windows of 126; give a text of at least 1008 tokens")


@pytest.mark.parametrize(
    ("content", "limit", "why"),
    [
        (b"", None, "has 0 tokens, 0 windows of 256; give a text of at least 2048 tokens"),
        (b"short", None, "has 5 tokens, 0 windows"),
        (b"caf\xe9 " * 2000, None, "is not UTF-8 text"),
        (None, None, "cannot be read"),
        (b"text " * 2000, 3, "3 windows of text say nothing; give at least 8"),
    ],
    ids=["empty", "short", "latin-1", "missing", "limit"],
)
def test_what_is_no_text_to_measure_on(
    model: Path, tmp_path: Path, content: bytes | None, limit: int | None, why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "text.txt"
    if content is not None:
        file.write_bytes(content)
    arguments = [model / "fp32", "--data", file, "--reference", model / "model", *(["--limit", limit] if limit else [])]
    check_failure(run(capsys, "validate", *arguments), 2, why)


def test_a_text_bundle_is_not_compared_on_screens_or_with_another_model(
    model: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    check_failure(run(capsys, "validate", model / "fp32"), 2, "--reference: is needed for model")
    reference = ["--reference", model / "model"]
    check_failure(run(capsys, "validate", model / "fp32", *reference), 2, "--data: is needed for model")
    screens = write_samples("test", 1, tmp_path)
    check_failure(run(capsys, "validate", model / "fp32", *reference, "--data", screens), 3, "takes no images")
    other = tmp_path / "other"
    save(SHAPES["glm4v"], other)
    capsys.readouterr()
    arguments = ["--data", text, "--reference", other]
    why = rf"--reference {other}: is a Glm4vForConditionalGeneration, and the bundle was made of a \w+ForCausalLM; give"
    check_failure(run(capsys, "validate", model / "fp32", *arguments), 3, why)


def test_a_bundle_without_tokenizer_reads_no_text(
    text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(SHAPES["glm-tied-one-head"], tmp_path / "mute")
    assert main(["export", str(tmp_path / "mute"), "--target", "cpu", "-o", str(tmp_path / "bundle")]) == 0
    capsys.readouterr()
    arguments = [tmp_path / "bundle", "--data", text, "--reference", tmp_path / "mute"]
    check_failure(run(capsys, "validate", *arguments), 2, "has no tokenizer, and reads no text")
