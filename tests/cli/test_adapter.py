"""``--adapter`` of the commands that read a checkpoint."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from safetensors.torch import load_file, save_file

from edgeglm.bundle import read_manifest
from edgeglm.export.checkpoint.adapter import open_checkpoint
from edgeglm.export.evaluate.original.cache import checkpoint_key
from edgeglm.export.evaluate.original.decoder import StreamedDecoder
from tests.cli.commands import check_failure, run
from tests.cli.test_validate_text import WORDS, write_tokenizer
from tests.export.test_adapter import TARGETS, Q, merge, save_adapter
from tests.export.tiny import SHAPES, save
from tests.extras import need_tflite

Capture = pytest.CaptureFixture[str]


def test_export_plan_and_validate_take_an_adapter(tmp_path: Path, capsys: Capture) -> None:
    folder, adapter, bundle = tmp_path / "model", tmp_path / "adapter", tmp_path / "bundle"
    model = save(replace(SHAPES["glm4"], layers=2), folder)
    save_adapter(model, adapter)
    save_adapter(model, tmp_path / "other", lora_alpha=1)
    usual = (folder, "--target", "cpu", "--precision", "int4", "--adapter", adapter)
    status, out, _ = run(capsys, "plan", *usual, "--json")
    assert status == 0
    planned = json.loads(out)["bundle_bytes"]
    status, out, _ = run(capsys, "export", *usual, "-o", bundle, "--json")
    assert status == 0
    assert json.loads(out)["bundle_bytes"] - read_manifest(bundle).files["report.html"].bytes == planned

    (tmp_path / "text.txt").write_text("a text")
    asked = ("validate", bundle, "--reference", folder, "--data", tmp_path / "text.txt")
    check_failure(run(capsys, *asked), 2, "--adapter: is needed: the bundle was exported with an adapter; give its fol")
    check_failure(run(capsys, *asked, "--adapter", tmp_path / "other"), 2, "other: is not the adapter that the bundle")
    check_failure(run(capsys, "plan", adapter, "--target", "cpu"), 3, "is an adapter, not a model; .* by --adapter")
    check_failure(
        run(capsys, "plan", folder, "--target", "cpu", "--adapter", folder), 2, "holds no adapter_config.json"
    )


def test_the_original_is_that_with_the_adapter(tmp_path: Path) -> None:
    folder, adapter = tmp_path / "model", tmp_path / "adapter"
    model = save(replace(SHAPES["glm4"], layers=2), folder)
    save_adapter(model, adapter)
    original = open_checkpoint(folder, adapter)
    tokens = torch.arange(3, 20)[None]
    got = StreamedDecoder(original).hidden(tokens.numpy())
    merge(model, adapter, dict.fromkeys(TARGETS, 3.0))
    with torch.no_grad():
        want = model.model(tokens).last_hidden_state
    assert (got - want).norm() <= 1e-5 * want.norm()
    assert checkpoint_key(folder) != checkpoint_key(folder, original.adapter_sha256)


@pytest.mark.parametrize("format", ["onnx", "tflite"])
def test_a_bundle_with_an_adapter_reads_a_text_as_its_original(format: str, tmp_path: Path, capsys: Capture) -> None:
    if format == "tflite":
        need_tflite()
    folder, adapter, bundle, text = (tmp_path / name for name in ("model", "adapter", "bundle", "text.txt"))
    save_adapter(save(replace(SHAPES["glm4"], layers=1), folder), adapter, targets=(Q,))
    write_tokenizer(folder / "tokenizer.json")
    text.write_text(" ".join(WORDS) * 60)
    options = ("--target", "cpu", "--precision", "fp32", "--format", format, "-o", bundle)
    assert run(capsys, "export", folder, "--adapter", adapter, *options)[0] == 0
    asked = ("validate", bundle, "--reference", folder, "--adapter", adapter, "--data", text, "--json")
    status, out, _ = run(capsys, *asked, "--limit", 8)
    assert status == 0
    perplexity, agreement = json.loads(out)["metrics"]
    assert abs(perplexity["drop"]) < 1e-4
    assert agreement["artifact"] == 1


def test_numbers_that_are_none_are_the_adapters(tmp_path: Path, capsys: Capture) -> None:
    folder, adapter = tmp_path / "model", tmp_path / "adapter"
    save_adapter(save(replace(SHAPES["glm4"], layers=1), folder), adapter, targets=(Q,))
    tensors = load_file(adapter / "adapter_model.safetensors")
    tensors[f"base_model.model.{Q}.lora_A.weight"].fill_(float("nan"))
    save_file(tensors, adapter / "adapter_model.safetensors")
    options = ("--target", "cpu", "--precision", "int4", "--adapter", adapter, "-o", tmp_path / "bundle")
    told = r"with .*adapter_model\.safetensors: .*q_proj\.weight: the weight holds NaN or infinity"
    check_failure(run(capsys, "export", folder, *options), 6, told)
    check_failure(run(capsys, "plan", folder, "--target", "cpu", "--adapter", ""), 2, "holds no adapter_config.json")
