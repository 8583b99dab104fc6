"""Bundles of quantized checkpoints, beside transformers with the weights that those stand for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from torch import Tensor

from edgeglm.devices.loader import load_profile
from edgeglm.export.checkpoint.reader import Checkpoint
from edgeglm.export.predict.forecast import export_peak, forecast
from edgeglm.export.prepare.preparation import open_export
from edgeglm.export.prepare.types import Request
from tests.export.quantized import Quantizer, fp8_blocks, gptq, packed, save_quantized
from tests.export.test_pipeline import LIMIT, Runner, error, make
from tests.export.tiny import SHAPES, save

FORMATS: dict[str, tuple[dict[str, Any], Quantizer]] = {
    "fp8": (
        {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [32, 48]},
        fp8_blocks((32, 48)),
    ),
    "gptq": ({"quant_method": "gptq", "bits": 4, "desc_act": True}, gptq(4, 32, ordered=True)),
    "packed": (
        {
            "quant_method": "compressed-tensors",
            "format": "pack-quantized",
            "config_groups": {"a": {"weights": {"num_bits": 4}}},
        },
        packed(4, 32, symmetric=False),
    ),
}


@pytest.mark.parametrize("name", FORMATS)
def test_a_bundle_computes_what_transformers_does_with_the_same_weights(name: str, tmp_path: Path) -> None:
    reference: Any = save_quantized(SHAPES["glm4"], tmp_path / "model", *FORMATS[name])
    made = make(tmp_path / "model", "cpu", "fp32", tmp_path / "bundle")
    assert all((module.max_relative_error or 0) <= LIMIT for module in made.modules)
    runner = Runner(tmp_path / "bundle")
    for tokens in ([5], [i * 37 % 250 for i in range(64)]):
        with torch.no_grad():
            want = reference(torch.tensor([tokens])).logits[:, -1:].numpy()
        assert error(runner.logits(tokens), want) <= LIMIT


def test_weights_of_another_scale_are_another_provenance(tmp_path: Path) -> None:
    settings, quantizer = FORMATS["fp8"]
    hashes = set()
    for factor in (1, 2):
        folder = tmp_path / str(factor)

        def scaled(weight: Tensor, factor: int = factor) -> tuple[dict[str, Tensor], Tensor]:
            stored, plain = quantizer(weight)
            return stored | {"weight_scale_inv": stored["weight_scale_inv"] * factor}, plain * factor

        save_quantized(SHAPES["glm4"], folder / "model", settings, scaled)
        hashes.add(make(folder / "model", "cpu", "int4", folder / "bundle").provenance.weights_sha256)
    assert len(hashes) == 2


def test_what_is_traced_and_planned_is_the_plain_model(tmp_path: Path) -> None:
    save(SHAPES["glm4"], tmp_path / "plain")
    save_quantized(SHAPES["glm4"], tmp_path / "fp8", *FORMATS["fp8"])
    requests = [Request(tmp_path / name, "tiny", load_profile("cpu"), "int4") for name in ("plain", "fp8")]
    plain, quantized = (open_export(request) for request in requests)
    config = {key: json.loads(plain.probe.config)[key] for key in ("hidden_size", "num_hidden_layers")}
    assert config.items() <= json.loads(quantized.probe.config).items()
    assert "quantization_config" not in quantized.probe.config
    assert len(quantized.notes) == len(plain.notes) + 1
    peaks = [forecast(request).chosen.device_peak_rss_bytes for request in requests]
    assert peaks[0] == peaks[1]
    assert export_peak(quantized, workers=2, traced=True) >= export_peak(plain, workers=2, traced=True)
    assert Checkpoint.open(tmp_path / "fp8").parameters == Checkpoint.open(tmp_path / "plain").parameters
