"""A family of Llama's kind: heads rotated by halves. All that edgeglm must know of it is in this file."""

from __future__ import annotations

from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from edgeglm.bundle import load_bundle, verify_bundle
from edgeglm.export.families.spec import DecoderSpec, Family
from tests.export.families.exporting import error, make, original_steps, register, steps
from tests.export.tiny import randomize

# The tracing process ignores the warnings of torch's exporter too.
pytestmark = pytest.mark.filterwarnings("ignore")

LLAMA = Family(
    "llama",
    "LlamaForCausalLM",
    "transformers.models.llama.modeling_llama",
    DecoderSpec("LlamaDecoderLayer", "LlamaRotaryEmbedding", "halves", positions=2048),
)
# A prompt, and a conversation that goes on.
TOKENS = [[3, 1, 4, 1, 5, 9, 2], [6], [5], [3, 5, 8]]
# Of 24 channels attention has no tables, and the rotary embedding is an operator of its own.
WIDTHS = [32, 24]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where traces are kept, which are the same in each precision."""
    return tmp_path_factory.mktemp("cache")


@pytest.mark.parametrize(
    ("precision", "width", "limit"), [*(("fp32", width, 1e-5) for width in WIDTHS), ("int8", 32, 0.05)]
)
def test_a_bundle_computes_what_transformers_does(
    precision: str, width: int, limit: float, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(monkeypatch, cache, LLAMA)
    config = transformers.LlamaConfig(
        vocab_size=200, hidden_size=96, intermediate_size=160, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=width, max_position_embeddings=128, attention_bias=True, pad_token_id=0,
    )  # fmt: skip
    model = randomize(transformers.LlamaForCausalLM(config))
    model.save_pretrained(tmp_path / "model")
    made = make(tmp_path / "model", precision, tmp_path / "bundle")
    assert made.model.family == "llama"
    assert [module.name for module in made.modules] == ["embedding", "decoder"]
    assert max(module.max_relative_error or 0 for module in made.modules) <= limit
    bundle = load_bundle(tmp_path / "bundle")
    verify_bundle(bundle)
    for got, want in zip(steps(bundle, TOKENS), original_steps(model, TOKENS), strict=True):
        assert error(got, want) <= limit
