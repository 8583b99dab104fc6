"""What adapter_config.json says and the weights do not, beside peft: one line, or a note that names it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from safetensors.torch import load_file, save_file
from torch import Tensor

from edgeglm.errors import DamagedFileError, EdgeglmError, UnsupportedError, UsageError
from edgeglm.export.checkpoint.adapter import open_checkpoint
from edgeglm.export.checkpoint.adapter_settings import REFUSED, SILENT, Settings
from tests.export.test_adapter import CONFIG, SHAPE, Q, save_adapter
from tests.export.tiny import SHAPES, save


def test_every_setting_of_peft_is_decided_on() -> None:
    """A setting that a new peft adds makes this fail, until somebody decides what it is."""
    peft = pytest.importorskip("peft")
    decided = [*Settings.__struct_fields__, *REFUSED, *SILENT]
    assert len({*decided}) == len(decided)
    assert {field.name for field in fields(peft.LoraConfig)} <= {*decided}


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
    "rank 0": (config(r=0), DamagedFileError, r"adapter_config\.json: is not valid: .*`\$\.r`"),
    "no alpha": (config(lora_alpha="x"), DamagedFileError, r"is not valid: .*`\$\.lora_alpha`"),
    "an endless alpha": (config(alpha_pattern={"q_proj": 1e300}), DamagedFileError, r"is not valid: .*alpha_pattern"),
    "no pattern": (config(rank_pattern=[1]), DamagedFileError, r"is not valid: .*`\$\.rank_pattern`"),
    "odd biases": (config(bias="some"), DamagedFileError, r"is not valid: .*`\$\.bias`"),
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
