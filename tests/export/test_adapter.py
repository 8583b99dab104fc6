"""LoRA adapters merged by rows, beside the same arithmetic in torch, and peft's own merge where it is installed."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import fields, replace
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
from edgeglm.export.checkpoint.adapter_settings import REFUSED, SILENT, Settings
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


def test_every_setting_of_peft_is_decided_on() -> None:
    """A setting that a new peft adds makes this fail, until somebody decides what it is."""
    peft = pytest.importorskip("peft")
    decided = [*Settings.__struct_fields__, *REFUSED, *SILENT]
    assert len({*decided}) == len(decided)
    assert {field.name for field in fields(peft.LoraConfig)} <= {*decided}


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


NOTED: dict[str, tuple[dict[str, Any], str | None]] = {
    "a key of a newer peft": ({"frobnicate": 2, "turned_off": None}, "adapter_config.json: not honoured: frobnicate"),
    "silent ones": (dict.fromkeys(SILENT, "x"), None),
    "all biases": ({"bias": "all"}, "bias is all, and 6 of 6 biases are the model's own"),
    "biases": ({"bias": "lora_only"}, "bias is lora_only, and 1 of 1 biases are the model's own"),
    "targets": (
        {"target_modules": ["q_proj", "down_proj", "no_such"]},
        "target_modules names model.layers.0.mlp.down_proj and 2 more, and the adapter has no weights of it: it stays",
    ),
    "an expression": ({"target_modules": "(a+)+.*q_proj"}, None),
}


@pytest.mark.parametrize(("settings", "note"), NOTED.values(), ids=NOTED)
def test_what_the_weights_do_not_have_is_noted(settings: dict[str, Any], note: str | None, tmp_path: Path) -> None:
    model = save(replace(SHAPES["glm"], layers=2), tmp_path / "model")
    save_adapter(model, tmp_path / "adapter", targets=(Q,), **settings)
    notes = open_checkpoint(tmp_path / "model", tmp_path / "adapter").notes
    assert [note in said for said in notes] == [True] if note else notes == ()


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
AB = ("A", B), ("B", A)
WRONG: dict[str, tuple[Change, type[EdgeglmError], str]] = {
    "no adapter": (lambda f: (f / "adapter_config.json").unlink(), UsageError, r"holds no adapter_config\.json"),
    "another kind": (config(peft_type="IA3"), UnsupportedError, "is of an adapter by IA3, and edgeglm merges LORA"),
    "dora": (config(use_dora=True), UnsupportedError, "sets use_dora, which edgeglm does not merge"),
    "pissa": (config(init_lora_weights="pissa_niter_4"), UnsupportedError, "began as pissa_niter_4, which changes"),
    "another rank": (config(r=8), DamagedFileError, "has rank 4 where adapter_config.json says 8"),
    "another rank by its pattern": (config(rank_pattern={"q_proj": 2}), DamagedFileError, "q_proj: has rank 4 where"),
    "a pattern for others": (
        config(r=8, rank_pattern={"q_proj": 4}),
        DamagedFileError,
        r"\w_proj: has rank 4 where .*8",
    ),
    "no rank": (
        tensors(lambda t: t.update({A: t[A][:0].contiguous(), B: t[B][:, :0].contiguous()})),
        DamagedFileError,
        "has rank 0 where adapter_config.json says 4",
    ),
    "rank 0": (config(r=0), DamagedFileError, r"adapter_config\.json: cannot be so: .*`\$\.r`"),
    "no alpha": (config(lora_alpha="x"), DamagedFileError, r"cannot be so: .*`\$\.lora_alpha`"),
    "an endless alpha": (config(alpha_pattern={"q_proj": 1e300}), DamagedFileError, r"cannot be so: .*alpha_pattern"),
    "no pattern": (config(rank_pattern=[1]), DamagedFileError, r"cannot be so: .*`\$\.rank_pattern`"),
    "odd biases": (config(bias="some"), DamagedFileError, r"cannot be so: .*`\$\.bias`"),
    "an odd beginning": (config(init_lora_weights={"a": 1}), UnsupportedError, "began as"),
    "not saved": (
        config(modules_to_save=["lm_head"]),
        DamagedFileError,
        "lm_head.weight: is missing, and modules_to_save of adapter_config.json names it",
    ),
    "not named": (
        config(target_modules=["q_proj", "down_proj"]),
        DamagedFileError,
        "gate_up_proj: is adapted, and target_modules of adapter_config.json does not name it",
    ),
    "names of torch": (
        tensors(lambda t: t.update({A.replace("A.", "A.default."): t.pop(A)})),
        DamagedFileError,
        r"lora_A\.default\.weight: is no part of a LoRA adapter as peft saves it",
    ),
    "one weight twice": (
        tensors(lambda t: t.update({f"base_model.model.{Q}.lora_embedding_{x}": t[y].T.contiguous() for x, y in AB})),
        DamagedFileError,
        r"changes model\.layers\.0\.self_attn\.q_proj\.weight twice",
    ),
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
