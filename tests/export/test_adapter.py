"""LoRA adapters merged by rows, beside the same arithmetic in torch, and peft's own merge where it is installed."""

from __future__ import annotations

import json
from collections.abc import Callable
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
from edgeglm.errors import DamagedFileError, EdgeglmError, UnsupportedError, UsageError
from edgeglm.export.checkpoint.adapter import open_checkpoint
from edgeglm.export.checkpoint.reader import Checkpoint
from edgeglm.export.pipeline.prepare import open_export
from edgeglm.export.pipeline.prepared import Request
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
    said: dict[str, Any] = CONFIG | config
    dtype = torch.bfloat16 if half else torch.float32
    tensors = dict(more or {})
    for target in targets:
        rows, columns = weight_of(model, target).shape
        a, b, name = torch.randn(said["r"], columns), torch.randn(rows, said["r"]), f"base_model.model.{target}"
        if target == EMBED:
            a, b = torch.randn(said["r"], rows), torch.randn(columns, said["r"])
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
        {"alpha_pattern": {"q_proj": 8, "^model.layers.1": 2, "proj": 99}},
        {Q: 2.0, DOWN: 0.5, TARGETS[2]: 3.0},
    ),
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


def test_rows_are_those_of_peft(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    model = save(SHAPE, tmp_path / "model")
    for name, settings in {"a": {}, "b": {"use_rslora": True, "alpha_pattern": {"q_proj": 3}}}.items():
        wrapped = peft.get_peft_model(
            type(model).from_pretrained(tmp_path / "model"),
            peft.LoraConfig(
                r=4, lora_alpha=12, target_modules=["q_proj", "gate_up_proj", "embed_tokens"],
                modules_to_save=["lm_head"], init_lora_weights=False, **settings,
            ),
        )  # fmt: skip
        wrapped.save_pretrained(tmp_path / name)
        check(open_checkpoint(tmp_path / "model", tmp_path / name), wrapped.merge_and_unload())


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


Change = Callable[[Path], object]


def config(**settings: object) -> Change:
    return lambda folder: (folder / "adapter_config.json").write_text(json.dumps(CONFIG | settings))


def tensors(change: Callable[[dict[str, Tensor]], object]) -> Change:
    def apply(folder: Path) -> None:
        found = load_file(folder / "adapter_model.safetensors")
        change(found)
        save_file(found, folder / "adapter_model.safetensors")

    return apply


A, B = f"base_model.model.{Q}.lora_A.weight", f"base_model.model.{Q}.lora_B.weight"
WRONG: dict[str, tuple[Change, type[EdgeglmError], str]] = {
    "no adapter": (lambda f: (f / "adapter_config.json").unlink(), UsageError, r"holds no adapter_config\.json"),
    "another kind": (config(peft_type="IA3"), UnsupportedError, "is of an adapter by IA3, and edgeglm merges LORA"),
    "dora": (config(use_dora=True), UnsupportedError, "sets use_dora, which edgeglm does not merge"),
    "pissa": (config(init_lora_weights="pissa_niter_4"), UnsupportedError, "began as pissa_niter_4, which changes"),
    "another rank": (config(r=8), DamagedFileError, "has rank 4 where adapter_config.json says 8"),
    "no alpha": (config(lora_alpha="x"), DamagedFileError, "as lora_alpha"),
    "a pattern that is none": (config(alpha_pattern={"(a+)+": 3}), UnsupportedError, "is no module's name"),
    "no b": (tensors(lambda t: t.pop(B)), DamagedFileError, "lora_B.weight: is missing, and the other half is there"),
    "no a": (tensors(lambda t: t.pop(A)), DamagedFileError, "lora_A.weight: is missing, and the other half is there"),
    "integers": (tensors(lambda t: t.update({A: t[A].int()})), UnsupportedError, "lora_A.weight: is stored as I32"),
    "nothing": (tensors(lambda t: t.clear()), DamagedFileError, "holds no weights"),
    "another base": (
        tensors(lambda t: t.update({name.replace("layers.0", "layers.9"): t.pop(name) for name in (A, B)})),
        UsageError,
        r"changes model\.layers\.9\.self_attn\.q_proj\.weight, which .* does not have; give the model that",
    ),
    "another width": (
        tensors(lambda t: t.update({A: t[A][:, :-1].contiguous()})),
        DamagedFileError,
        "does not fit the base's weight of shape",
    ),
    "a pickle": (
        lambda f: (f / "adapter_model.safetensors").rename(f / "adapter_model.bin"),
        UnsupportedError,
        "is a pickle",
    ),
}


@pytest.mark.parametrize(("change", "kind", "message"), WRONG.values(), ids=WRONG)
def test_what_is_no_adapter_of_the_model_is_one_line(
    change: Change, kind: type[EdgeglmError], message: str, tmp_path: Path
) -> None:
    save_adapter(save(SHAPE, tmp_path / "model"), tmp_path / "adapter")
    change(tmp_path / "adapter")
    with pytest.raises(kind, match=message):
        open_checkpoint(tmp_path / "model", tmp_path / "adapter")
