"""Checkpoints whose values fp16 does not hold: what is emitted for a GPU is right in its arithmetic, or refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from edgeglm import manifest
from edgeglm.bundle import load_bundle, verify_bundle
from edgeglm.devices.loader import load_profile
from edgeglm.errors import AccuracyError
from edgeglm.export.graph.fix.half_range import HalfRange
from edgeglm.export.pipeline.export import export
from edgeglm.export.predict.forecast import predict
from edgeglm.export.prepare.preparation import open_export, prepare
from edgeglm.export.prepare.types import Request
from edgeglm.export.prove.fp16_arithmetic import HalfGraph
from edgeglm.runtimes.engines.tensorrt.cache import engine_for
from edgeglm.runtimes.engines.tensorrt.library import load_library
from edgeglm.runtimes.inputs.positions import causal_mask, prompt_positions
from edgeglm.runtimes.text.chat import Chat
from edgeglm.runtimes.text.messages import message
from edgeglm.runtimes.text.sidecars import Sidecars
from tests.cli.commands import run
from tests.export.tiny import SHAPES, Shape, build

FIRST = ["[gMASK]", "<sop>", "<|user|>", "<|assistant|>", "<|system|>"]
TEMPLATE = (
    "[gMASK]<sop>{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
CHANNEL = 5
TOKENS = 261


def write_tokenizer(folder: Path) -> None:
    vocabulary = {piece: number for number, piece in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    vocabulary |= {name: len(vocabulary) + index for index, name in enumerate(FIRST)}
    assert len(vocabulary) == TOKENS
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(FIRST)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "chat_template.jinja").write_text(TEMPLATE)


def token_of(piece: str) -> int:
    return 256 + FIRST.index(piece) if piece in FIRST else sorted(pre_tokenizers.ByteLevel.alphabet()).index(piece)


def write(family: str, token: str, folder: Path, change: str = "mlp.down_proj") -> Any:  # noqa: ANN401
    """A checkpoint in which one token makes the first layer's MLP, or another product, larger than fp16 holds."""
    shape: Shape = replace(SHAPES[family], layers=2, vocabulary=264)
    model = build(shape)
    first, layer = token_of(token), model.model.layers[0]
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        model.model.embed_tokens.weight[:, CHANNEL] = 0
        model.model.embed_tokens.weight[first] = 0
        model.model.embed_tokens.weight[first, CHANNEL] = 40.0
        if change == "mlp.down_proj":
            half = len(layer.mlp.gate_up_proj.weight) // 2
            layer.mlp.gate_up_proj.weight[:20, CHANNEL] = 16.0
            layer.mlp.gate_up_proj.weight[half : half + 20, CHANNEL] = 16.0
            layer.mlp.down_proj.weight[:, :20] = torch.randn(shape.hidden, 20, generator=random).abs()
        else:
            layer.self_attn.v_proj.weight[:, CHANNEL] = 20_000.0
    model.save_pretrained(folder)
    write_tokenizer(folder)
    return model


def make(folder: Path, out: Path, precision: str = "fp16") -> tuple[manifest.Manifest, tuple[str, ...]]:
    prepared = prepare(open_export(Request(folder, "tiny", load_profile("jetson-orin"), precision)))
    made = export(prepared, out, predict(prepared), lambda _: None)
    verify_bundle(load_bundle(out))
    return made


def chat(folder: Path) -> list[int]:
    return Chat(Sidecars(folder), None).encode([message("user", "Is it right?")])


def logits(bundle: Path, model: Any, tokens: list[int], *, emulated: bool = False) -> tuple[Any, Any]:  # noqa: ANN401
    """Of the emitted graph in fp16 arithmetic, and of transformers in fp32."""
    path = bundle / "decoder/model.onnx"
    graph = onnx.load(path)
    table = model.model.embed_tokens.weight.detach()[tokens][None].half()
    given: dict[str, NDArray[Any]] = {
        value.name: np.zeros([dim.dim_value or 0 for dim in value.type.tensor_type.shape.dim], np.float16)
        for value in graph.graph.input
        if value.name.startswith("past_")
    }
    given["hidden"] = table.numpy()
    given["position_ids"] = prompt_positions([False] * len(tokens), None)
    given["mask"] = causal_mask(len(tokens), len(tokens)).astype(np.float16)
    if emulated:
        got = HalfGraph.open(path).run(given)["logits"]
    else:
        with np.errstate(all="ignore"):
            got = ReferenceEvaluator(graph).run(["logits"], given)[0]  # type: ignore[index]
    with torch.no_grad():
        want = model(inputs_embeds=table.float()).logits[0, -1].numpy()
    return got.astype(np.float64).reshape(-1), want


def error(pair: tuple[Any, Any]) -> float:
    got, want = pair
    return float(np.linalg.norm(got - want) / np.linalg.norm(want))


@pytest.mark.parametrize("family", ["glm4", "glm"])
@pytest.mark.parametrize("precision", ["fp16", "int8", "int4"])
def test_the_first_tokens_overflow_and_the_graph_is_right(family: str, precision: str, tmp_path: Path) -> None:
    """With a norm behind the product (glm4), and where the residual itself is too large (glm)."""
    model = write(family, "[gMASK]", tmp_path / "model")
    made, notes = make(tmp_path / "model", tmp_path / "bundle", precision)
    decoder = made.modules[1]
    assert "model.layers.0.mlp.down_proj" in decoder.fp32_values
    assert any("layer.1.add" in name for name in decoder.fp32_values) == (family == "glm")
    assert any(f"decoder: {decoder.fp32_values[0]}" in note for note in notes)
    tokens, limit = chat(tmp_path / "model"), {"fp16": 0.01, "int8": 0.2, "int4": 0.8}[precision]
    assert error(logits(tmp_path / "bundle", model, tokens)) < limit
    assert error(logits(tmp_path / "bundle", model, tokens, emulated=True)) < limit
    assert decoder.max_relative_error is not None
    assert decoder.max_relative_error < limit


def test_without_it_the_export_ends_with_exit_code_4(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The proof sees what ONNX Runtime's CPU does not, and names module and layer."""
    write("glm4", "[gMASK]", tmp_path / "model")
    monkeypatch.setattr(HalfRange, "call", lambda self, model: ir.passes.PassResult(model, False))
    with pytest.raises(AccuracyError, match=r"decoder/model\.onnx: .*layers\.0\.mlp\.down_proj") as caught:
        make(tmp_path / "model", tmp_path / "bundle")
    assert caught.value.exit_code == 4
    assert caught.value.remedy == "export it with --precision decoder=fp32"
    assert not (tmp_path / "bundle").exists()
    monkeypatch.undo()
    made, _ = make(tmp_path / "model", tmp_path / "fp32", "fp32")
    assert made.modules[1].fp32_values == ()


def test_a_special_token_that_no_probe_has_is_looked_at_too(tmp_path: Path) -> None:
    model = write("glm4", "<|system|>", tmp_path / "model")
    (tmp_path / "model/chat_template.jinja").write_text(TEMPLATE.replace("<|{{ m.role }}|>", "<|user|>"))
    made, _ = make(tmp_path / "model", tmp_path / "bundle")
    assert made.modules[1].fp32_values == ("model.layers.0.mlp.down_proj",)
    tokens = [256 + FIRST.index("<|system|>"), *chat(tmp_path / "model")]
    assert error(logits(tmp_path / "bundle", model, tokens)) < 0.01


def test_what_cannot_be_mended_ends_with_exit_code_4(tmp_path: Path) -> None:
    """Keys and values go from step to step in fp16."""
    write("glm4", "[gMASK]", tmp_path / "model", "self_attn.v_proj")
    with pytest.raises(AccuracyError, match=r"layers\.0\.self_attn\.v_proj overflows in fp16") as caught:
        make(tmp_path / "model", tmp_path / "bundle")
    assert caught.value.exit_code == 4


def test_validate_does_not_pass_what_only_its_text_shows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A letter that no probe has."""
    write("glm4", "q", tmp_path / "model")
    made, _ = make(tmp_path / "model", tmp_path / "bundle")
    assert made.modules[1].fp32_values == ()
    (tmp_path / "text").write_text("one of the words is quick. " * 90)
    arguments = [tmp_path / "bundle", "--reference", tmp_path / "model", "--data", tmp_path / "text", "--limit", 8]
    status, _, error = run(capsys, "validate", *arguments)
    assert status == 4, error
    assert "decoder: computes NaN or infinity in fp16" in error
    assert "--precision decoder=fp32" in error


def test_a_healthy_checkpoint_has_nothing_in_fp32_and_errs_as_before(tmp_path: Path) -> None:
    shape = replace(SHAPES["glm4"], layers=2, vocabulary=264)
    build(shape).save_pretrained(tmp_path / "model")
    write_tokenizer(tmp_path / "model")
    made, notes = make(tmp_path / "model", tmp_path / "bundle")
    assert made.modules[1].fp32_values == ()
    assert not any("too large" in note for note in notes)
    assert made.modules[1].max_relative_error is not None
    assert 1e-4 < made.modules[1].max_relative_error < 4e-3


def test_a_resumed_export_has_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write("glm", "[gMASK]", tmp_path / "model")
    make(tmp_path / "model", tmp_path / "whole")
    with monkeypatch.context() as patched:
        patched.setattr("edgeglm.export.prove.prover.HalfProof.finish", lambda self: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            make(tmp_path / "model", tmp_path / "resumed")
    _, notes = make(tmp_path / "model", tmp_path / "resumed")
    assert any("resuming a partial bundle" in note for note in notes)
    names = ("manifest.json", "decoder/model.onnx", "decoder/weights.bin")
    assert all((tmp_path / "whole" / name).read_bytes() == (tmp_path / "resumed" / name).read_bytes() for name in names)


@pytest.mark.parametrize("family", ["glm4", "glm"])
def test_tensorrt_for_rtx_builds_what_is_rescaled(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tensorrt_rtx", reason="needs pip install 'edgeglm[tensorrt]'")
    write(family, "[gMASK]", tmp_path / "model")
    made, _ = make(tmp_path / "model", tmp_path / "bundle")
    assert made.modules[1].fp32_values
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))  # of the engine, not of traces
    bundle = load_bundle(tmp_path / "bundle")
    decoder = bundle.module("decoder")
    assert decoder is not None
    assert engine_for(bundle, decoder, load_library(["tensorrt_rtx"]), 86).path.stat().st_size > 1000
