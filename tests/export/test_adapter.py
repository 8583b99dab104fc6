"""LoRA adapters merged by rows, beside the same arithmetic in torch, and peft's own merge where it is installed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

import numpy as np
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from edgeglm.devices.loader import load_profile
from edgeglm.errors import UnsupportedError
from edgeglm.export.checkpoint.adapter import open_checkpoint
from edgeglm.export.checkpoint.reader import Checkpoint
from edgeglm.export.prepare.preparation import open_export
from edgeglm.export.prepare.types import Request
from tests.export.quantized import gptq, save_quantized
from tests.export.test_pipeline import LIMIT, Runner, error, make
from tests.export.tiny import SHAPES, save

SHAPE = replace(SHAPES["glm4"], layers=2)
CONFIG: dict[str, Any] = {"peft_type": "LORA", "r": 4, "lora_alpha": 12, "use_rslora": False, "bias": "none"}
Q, DOWN, EMBED = "model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj", "model.embed_tokens"
TARGETS = (Q, DOWN, "model.layers.0.mlp.gate_up_proj")


def save_adapter(
    model: PreTrainedModel,
    folder: Path,
    *,
    targets: tuple[str, ...] = TARGETS,
    half: bool = False,
    more: dict[str, Tensor] | None = None,
    **config: object,
) -> None:
    """Write an adapter of random matrices, as peft names them."""
    torch.manual_seed(3)
    said: dict[str, Any] = {key: value for key, value in (CONFIG | config).items() if value is not None}
    dtype = torch.bfloat16 if half else torch.float32
    tensors = dict(more or {})
    for target in targets:
        rows, columns = weight_of(model, target).shape
        rank = (said.get("rank_pattern") or {}).get(target.rpartition(".")[2], said["r"])
        a, b, name = torch.randn(rank, columns), torch.randn(rows, rank), f"base_model.model.{target}"
        if target == EMBED:
            a, b = torch.randn(rank, rows), torch.randn(columns, rank)
            tensors |= {f"{name}.lora_embedding_A": a.to(dtype), f"{name}.lora_embedding_B": b.to(dtype)}
        else:
            tensors |= {f"{name}.lora_A.weight": a.to(dtype), f"{name}.lora_B.weight": b.to(dtype)}
    folder.mkdir(exist_ok=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps(said))


def weight_of(model: PreTrainedModel, module: str, name: str = "weight") -> Tensor:
    return model.get_parameter(f"{module}.{name}").data


def merge(model: PreTrainedModel, folder: Path, scales: dict[str, float]) -> None:
    """Merge an adapter into a model in torch."""
    tensors = load_file(folder / "adapter_model.safetensors")
    for target, scale in scales.items():
        name, weight = f"base_model.model.{target}", weight_of(model, target)
        if target == EMBED:
            weight += scale * (tensors[f"{name}.lora_embedding_B"] @ tensors[f"{name}.lora_embedding_A"]).T
        else:
            weight += scale * (tensors[f"{name}.lora_B.weight"].float() @ tensors[f"{name}.lora_A.weight"].float())


def check(checkpoint: Checkpoint, model: PreTrainedModel) -> None:
    for name, parameter in model.named_parameters():
        expected = parameter.detach().numpy()
        whole, rows = checkpoint.rows(name), len(expected)
        assert np.abs(whole - expected).max() <= 2e-6 * max(1.0, float(np.abs(expected).max())), name
        assert np.array_equal(
            np.concatenate([checkpoint.rows(name, i, min(i + 7, rows)) for i in range(0, rows, 7)]), whole
        )


CASES: dict[str, tuple[dict[str, Any], dict[str, float]]] = {
    "alpha over rank": ({}, dict.fromkeys(TARGETS, 3.0)),
    "over its root": ({"use_rslora": True}, dict.fromkeys(TARGETS, 6.0)),
    "patterns": (
        # As peft reads them: a whole name, or its end; the first counts, and a dot is any letter.
        {"alpha_pattern": {"q_proj": 8, f"^{DOWN}": 2, "proj": 99, "^model.layers.0": 99, r"mlp\.gate.up_proj$": 4}},
        {Q: 2.0, DOWN: 0.5, TARGETS[2]: 1.0},
    ),
    "ranks": (
        {"rank_pattern": {"q_proj": 2, "^model.layers.1": 9}, "r": 4},
        {Q: 6.0} | dict.fromkeys(TARGETS[1:], 3.0),
    ),
    "peft's own alpha": ({"lora_alpha": None}, dict.fromkeys(TARGETS, 2.0)),
    "bf16": ({"half": True}, dict.fromkeys(TARGETS, 3.0)),
    "a table": ({"targets": (Q, EMBED)}, {Q: 3.0, EMBED: 3.0}),
}


@pytest.mark.parametrize(("config", "scales"), CASES.values(), ids=CASES)
def test_rows_are_those_of_torch(config: dict[str, Any], scales: dict[str, float], tmp_path: Path) -> None:
    model = save(SHAPE, tmp_path / "model")
    save_adapter(model, tmp_path / "adapter", **config)
    plain = Checkpoint.open(tmp_path / "model")
    checkpoint = open_checkpoint(tmp_path / "model", tmp_path / "adapter")
    merge(model, tmp_path / "adapter", scales)
    check(checkpoint, model)
    assert plain.is_plain
    assert not checkpoint.is_plain
    assert not np.array_equal(plain.rows(f"{Q}.weight"), checkpoint.rows(f"{Q}.weight"))


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning", "ignore::RuntimeWarning")
def test_rows_are_those_of_peft(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    model = save(SHAPE, tmp_path / "model")
    patterns = {"alpha_pattern": {"q_proj": 3, "^model.layers.0": 99}, "rank_pattern": {"gate_up_proj": 2}}
    for name, settings in {"a": {}, "b": {"use_rslora": True, **patterns}}.items():
        wrapped = peft.get_peft_model(
            type(model).from_pretrained(tmp_path / "model"),
            peft.LoraConfig(
                r=4, lora_alpha=12, target_modules=["q_proj", "gate_up_proj", "embed_tokens"],
                modules_to_save=["lm_head"], init_lora_weights=False, **settings,
            ),
        )  # fmt: skip
        wrapped.save_pretrained(tmp_path / name)
        checkpoint = open_checkpoint(tmp_path / "model", tmp_path / name)
        check(checkpoint, wrapped.merge_and_unload())
        assert checkpoint.notes == ()


def test_whole_weights_and_biases_of_an_adapter_replace_those_of_the_base(tmp_path: Path) -> None:
    model = save(replace(SHAPES["glm"], layers=1), tmp_path / "model")
    head, bias = weight_of(model, "lm_head"), weight_of(model, Q, "bias")
    more = {"base_model.model.lm_head.weight": torch.ones_like(head), f"base_model.model.{Q}.bias": bias * 2}
    save_adapter(model, tmp_path / "adapter", targets=(Q,), more=more, bias="all")
    checkpoint = open_checkpoint(tmp_path / "model", tmp_path / "adapter")
    merge(model, tmp_path / "adapter", {Q: 3.0})
    head.fill_(1.0)
    bias *= 2
    check(checkpoint, model)


TIED = replace(SHAPES["glm-tied-one-head"], layers=2)


@pytest.mark.parametrize("saved", [("lm_head",), ("embed_tokens",), ("lm_head", "embed_tokens")], ids="+".join)
def test_a_saved_table_or_head_unties_the_two(saved: tuple[str, ...], tmp_path: Path) -> None:
    """As in peft, whose merged model keeps the original weight in the other place."""
    model: Any = save(TIED, tmp_path / "model")
    table = weight_of(model, EMBED).clone()
    changed = {"lm_head": table * 2, "embed_tokens": table * 3}
    paths = {"lm_head": "base_model.model.lm_head.weight", "embed_tokens": f"base_model.model.{EMBED}.weight"}
    more = {paths[name]: changed[name] for name in saved}
    save_adapter(model, tmp_path / "adapter", targets=(Q,), more=more, modules_to_save=saved)
    checkpoint = open_checkpoint(tmp_path / "model", tmp_path / "adapter")
    assert checkpoint.config["tie_word_embeddings"] is False
    for name, target in {"lm_head": "lm_head.weight", "embed_tokens": f"{EMBED}.weight"}.items():
        want = changed[name] if name in saved else table
        assert np.array_equal(checkpoint.rows(target), want.numpy())


def test_a_table_that_is_replaced_and_not_named_stays_tied(tmp_path: Path) -> None:
    model = save(TIED, tmp_path / "model")
    more = {f"base_model.model.{EMBED}.weight": weight_of(model, EMBED) * 2}
    save_adapter(model, tmp_path / "adapter", targets=(Q,), more=more)
    checkpoint = open_checkpoint(tmp_path / "model", tmp_path / "adapter")
    assert checkpoint.config["tie_word_embeddings"]
    assert "lm_head.weight" not in checkpoint.tensors


@pytest.mark.parametrize("name", [EMBED, "lm_head"])
def test_a_product_for_one_of_two_tied_weights_is_refused(name: str, tmp_path: Path) -> None:
    """What peft merges differs from what it trained: its product is for one of the two, and its merge changes both."""
    model = save(TIED, tmp_path / "model")
    save_adapter(model, tmp_path / "adapter", targets=(Q, EMBED))
    file = tmp_path / "adapter/adapter_model.safetensors"
    old = f"base_model.model.{EMBED}.lora_embedding_"
    found = {key: tensor for key, tensor in load_file(file).items() if not key.startswith(old)}
    a, b = torch.ones(4, 96), torch.ones(256, 4)
    new = f"base_model.model.{name}."
    parts = {f"{old}A": b.T.contiguous(), f"{old}B": a.T.contiguous()}
    head = {f"{new}lora_A.weight": a, f"{new}lora_B.weight": b, f"{new}base_layer.weight": torch.ones(256, 96)}
    save_file(found | (parts if name == EMBED else head), file)
    with pytest.raises(UnsupportedError, match=rf"adapts {name}\.weight, which embedding and head share"):
        open_checkpoint(tmp_path / "model", tmp_path / "adapter")


def test_an_adapter_on_a_quantized_base(tmp_path: Path) -> None:
    model = save_quantized(SHAPE, tmp_path / "model", {"quant_method": "gptq", "bits": 4}, gptq(4, 32, ordered=True))
    save_adapter(model, tmp_path / "adapter")
    merge(model, tmp_path / "adapter", dict.fromkeys(TARGETS, 3.0))
    check(open_checkpoint(tmp_path / "model", tmp_path / "adapter"), model)


def test_a_bundle_computes_what_transformers_does_with_the_merged_weights(tmp_path: Path) -> None:
    model: Any = save(SHAPE, tmp_path / "model")
    save_adapter(model, tmp_path / "adapter")
    plain = open_export(Request(tmp_path / "model", "tiny", load_profile("cpu"), "fp32"))
    made = make(tmp_path / "model", "cpu", "fp32", tmp_path / "bundle", adapter=tmp_path / "adapter")
    assert plain.checkpoint.adapter_sha256 is None
    checkpoint = open_checkpoint(tmp_path / "model", tmp_path / "adapter")
    assert made.provenance.options["adapter_sha256"] == checkpoint.adapter_sha256
    merge(model, tmp_path / "adapter", dict.fromkeys(TARGETS, 3.0))
    tokens = [i * 37 % 250 for i in range(64)]
    with torch.no_grad():
        want = model(torch.tensor([tokens])).logits[:, -1:].numpy()
    assert error(Runner(tmp_path / "bundle").logits(tokens), want) <= LIMIT
