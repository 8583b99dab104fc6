"""The damage of a part: what transformers says of the model with that part alone rounded."""

from __future__ import annotations

from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

import numpy as np
from torch import Tensor

from edgeglm.devices.loader import load_profile
from edgeglm.export.checkpoint.locate import DEMO
from edgeglm.export.evaluate.original.whole import WholeOriginal
from edgeglm.export.pipeline.sensitivity import KIND, RESULT, sensitivities
from edgeglm.export.prepare.preparation import open_export, prepare
from edgeglm.export.prepare.types import Prepared, Request
from edgeglm.export.prove.probes import sample_prompts
from edgeglm.export.quantize.embedding import encode_embedding, gather
from edgeglm.export.quantize.schemes import Int4, Int8
from edgeglm.export.quantize.storage import dequantize, encode
from edgeglm.export.samples.screenshots import Sample, read_samples
from edgeglm.export.samples.shipped import DATA
from edgeglm.store import keep

PARTS = {"embedding": "int8", "vision.layer.1": "int4", "vision.back": "int4", "decoder.layer.2": "int4",
         "decoder.back": "int4"}  # fmt: skip
TENSORS: dict[str, str | tuple[str, ...]] = {
    "embedding": "model.language_model.embed_tokens.",
    "vision.layer.1": "model.visual.blocks.1.",
    "vision.back": ("model.visual.merger.", "model.visual.downsample."),
    "decoder.layer.2": "model.language_model.layers.2.",
    "decoder.back": "lm_head.",
}


@pytest.fixture(scope="module")
def samples() -> list[Sample]:
    return list(read_samples(DATA / "calibration.jsonl", 2))


@pytest.fixture(scope="module")
def prepared() -> Prepared:
    # On the GPU's side of the dialects, whose operators do not round activations.
    request = Request(DEMO, "demo", load_profile("jetson"), "int4,embedding=int8")
    return prepare(open_export(request))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prepared: Prepared) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "edgeglm" / "sensitivity"


def rounded(name: str, weight: Tensor) -> Tensor:
    rows = weight.reshape(len(weight), -1).float().numpy()
    if "embed_tokens" in name:
        found = gather(encode_embedding(Int8(), rows), np.arange(len(rows)))
    else:
        found = dequantize(Int4(), "portable", encode(Int4(), "portable", rows), rows.shape[1])
    result: Tensor = torch.from_numpy(found).reshape(weight.shape)
    return result


def log_probabilities(agent: WholeOriginal, sample: Sample, state: dict[str, Tensor]) -> Tensor:
    """Of the answer's tokens, when it is given."""
    agent.model.load_state_dict(state)
    inputs = agent.encode([sample.image], [sample.messages])
    answer = agent.tokenizer(sample.expected.response, return_tensors="pt", add_special_tokens=False).input_ids
    inputs["input_ids"] = torch.cat([inputs["input_ids"], answer], 1)
    for name, value in (("attention_mask", 1), ("mm_token_type_ids", 0)):
        inputs[name] = torch.cat([inputs[name], torch.full_like(answer, value)], 1)
    with torch.no_grad():
        logits = agent.model(**inputs).logits[0]
    found: Tensor = torch.log_softmax(logits[-1 - answer.shape[1] : -1].double(), -1)
    return found


def test_it_is_the_divergence_that_transformers_has(prepared: Prepared, samples: list[Sample]) -> None:
    found = sensitivities(prepared, sample_prompts(prepared, samples, answered=True), PARTS)
    agent = WholeOriginal.load(DEMO)
    state = {name: value.clone() for name, value in agent.model.state_dict().items()}
    for part, prefix in TENSORS.items():
        changed = {
            name: rounded(name, value) if name.startswith(prefix) and value.dim() > 1 else value
            for name, value in state.items()
        }
        assert any(value is not state[name] for name, value in changed.items())
        divergences = []
        for sample in samples:
            p, q = (log_probabilities(agent, sample, each) for each in (state, changed))
            divergences.append(float((p.exp() * (p - q)).sum(-1).mean()))
        assert found[part] == pytest.approx(np.mean(divergences), rel=0.02, abs=1e-9), part


def test_an_exact_part_does_none_and_the_cache_gives_the_same_again(
    prepared: Prepared, samples: list[Sample], cache: Path
) -> None:
    prompts = sample_prompts(prepared, samples[:1], answered=True)
    parts = {"decoder.layer.3": "fp32", "decoder.back": "int4"}
    first = sensitivities(prepared, prompts, parts)
    assert first["decoder.layer.3"] < 1e-12  # without AVX512 another piece of a product rounds otherwise
    assert first["decoder.back"] > 0
    (kept,) = cache.iterdir()
    assert sensitivities(prepared, prompts, parts) == first
    kept.write_text('{"decoder.back": 7.0}')  # damage, which is not believed
    assert sensitivities(prepared, prompts, parts) == first
    keep(KIND, kept.name, {RESULT: b'{"decoder.back": 7.0}'})
    assert sensitivities(prepared, prompts, parts) == {"decoder.back": 7.0}
    assert sensitivities(prepared, prompts, {"decoder.back": "int8"})["decoder.back"] < first["decoder.back"]
