"""GLM-ASR's audio tower: overlapping convolutions, layer norms, partial rotary, a projector that merges four frames.

All that edgeglm must know of the family, its decoder and its tower is in this file, which is the tower's module too.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import torch
import transformers
from torch import Tensor, nn
from transformers.models.glmasr import modeling_glmasr

from edgeglm.bundle import load_bundle, verify_bundle
from edgeglm.errors import UnsupportedError
from edgeglm.export.families.spec import DecoderSpec, EncoderSpec, Extent, Family
from edgeglm.export.families.tower import Answers, Hook, Part, watched
from edgeglm.export.model import Audio, Grid
from edgeglm.export.trace.placeholders import WindowLinear
from edgeglm.export.trace.trace_request import TraceRequest
from edgeglm.export.trace.trace_worker import Tracer
from edgeglm.export.trace.tracer import trace
from edgeglm.runtimes.engines.ort.options import open_session
from edgeglm.runtimes.text.messages import normalize
from tests.export.families.exporting import error, make, original_steps, register, steps
from tests.export.tiny import randomize

Anything = Any  # a class of transformers, or its config
# The tracing process ignores the warnings of torch's exporter too.
pytestmark = pytest.mark.filterwarnings("ignore")

PROJECTOR = "multi_modal_projector"


def describe(config: Anything, grid: Grid | None) -> Audio:
    audio = config.audio_config
    return Audio(
        layers=audio.num_hidden_layers,
        hidden=audio.hidden_size,
        heads=audio.num_attention_heads,
        output=config.text_config.hidden_size,
        blocks="audio_tower.layers.{layer}.",
        prefix="",
        back=("audio_tower.norm", PROJECTOR),
        token=config.audio_token_id,
        mel_bins=audio.num_mel_bins,
        frames=2 * audio.max_position_embeddings,  # of which the second convolution makes half as many
        stride=2,
        merge=audio.intermediate_size // audio.hidden_size,
    )


GLM_ASR = Family(
    "glmasr",
    "GlmAsrForConditionalGeneration",
    "transformers.models.llama.modeling_llama",
    DecoderSpec(
        "LlamaDecoderLayer", "LlamaRotaryEmbedding", "halves", positions=8192,
        prefix="language_model.model", head="language_model.lm_head.weight",
    ),
    (
        EncoderSpec(
            "audio",
            config="audio_config",
            depth="num_hidden_layers",
            weights=(".audio_tower.", f".{PROJECTOR}."),
            first="audio_tower.conv1.weight",
            blocks="audio_tower.layers.{layer}.",
            tower=__name__,
            describe=describe,
            extents=(Extent("num_mel_bins", "audio_tower.conv1.weight", 1),),
            keys=frozenset({"hidden_act", "hidden_size", "num_mel_bins", "rope_parameters"}),
            more_keys=frozenset({"audio_token_id", "projector_hidden_act"}),
        ),
    ),
    {
        "model.language_model.": "language_model.model.",
        "model.audio_tower.": "audio_tower.",
        f"model.{PROJECTOR}.": f"{PROJECTOR}.",
        "lm_head": "language_model.lm_head",
    },
)  # fmt: skip


# -- the tower, as `edgeglm.export.families.tower` asks for it ---------------------------


class Front(nn.Module):
    """Log-mel frames (1, bins, frames) to hidden states (1, positions, hidden)."""

    cos: Tensor
    sin: Tensor

    def __init__(self, tower: Anything, positions: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.conv1, self.conv2 = tower.conv1, tower.conv2
        cos, sin = tower.rotary_emb(torch.zeros(1), torch.arange(positions)[None])
        self.register_buffer("cos", cos[0].to(dtype))
        self.register_buffer("sin", sin[0].to(dtype))

    def forward(self, input_features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        hidden = nn.functional.gelu(self.conv1(input_features))
        return nn.functional.gelu(self.conv2(hidden)).transpose(1, 2), self.cos, self.sin


class Block(nn.Module):
    def __init__(self, block: nn.Module, hook: Hook) -> None:
        super().__init__()
        self.block, self.hook = block, hook

    def forward(self, hidden: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        with self.hook(cos, sin):
            output: Tensor = self.block(hidden, position_embeddings=(cos[None], sin[None]))
        return output


class Back(nn.Module):
    """Hidden states to features (tokens, output): `merge` of them side by side are one token's."""

    def __init__(self, tower: Anything, width: int) -> None:
        super().__init__()
        self.norm, self.projector, self.width = tower.audio_tower.norm, tower.multi_modal_projector, width

    def forward(self, hidden: Tensor) -> Tensor:
        features: Tensor = self.projector(self.norm(hidden).reshape(-1, self.width))
        return features


def build(config: Anything, attention: str) -> tuple[nn.Module, nn.Module]:
    audio, tower = config.audio_config, nn.Module()
    audio.num_hidden_layers = 1
    with torch.device("meta"):
        tower.audio_tower = modeling_glmasr.GlmAsrEncoder(audio)
        tower.multi_modal_projector = modeling_glmasr.GlmAsrMultiModalProjector(config)
    audio._attn_implementation = attention
    tower.audio_tower.rotary_emb = modeling_glmasr.GlmAsrRotaryEmbedding(audio)
    block = tower.audio_tower.layers[0]
    del tower.audio_tower.layers
    return tower, block


def parts(tower: Anything, block: nn.Module, audio: Audio, name: str, dtype: torch.dtype, hook: Hook) -> list[Part]:
    front = Front(tower.audio_tower, audio.positions, dtype)
    mel = torch.zeros(1, audio.mel_bins, audio.frames, dtype=dtype)
    hidden = torch.zeros(1, audio.positions, audio.hidden, dtype=dtype)
    cos, sin = f"{name}_cos", f"{name}_sin"
    given = {"hidden": hidden, cos: front.cos.clone(), sin: front.sin.clone()}
    return [
        Part(front, {"input_features": mel}, ("hidden", cos, sin), {}),
        Part(Block(block, hook), given, ("hidden",), {}),
        Part(Back(tower, audio.merge * audio.hidden), {"hidden": hidden.clone()}, ("features",), {}),
    ]


def ask(model: Anything, audio: Audio, generator: torch.Generator) -> Answers:
    mel = torch.randn(1, audio.mel_bins, audio.frames, generator=generator)
    with watched(model.model.audio_tower.layers[0]) as call:
        features = features_of(model, mel)
    return {
        "in.input_features": mel, "cos": call.cos[0], "sin": call.sin[0], "rows": torch.arange(audio.positions),
        "some_cos": call.cos[0], "some_sin": call.sin[0], "hidden": call.input, "block": call.output,
        "features": features, "sizes": torch.zeros(0, 2, dtype=torch.int64),
    }  # fmt: skip


def features_of(model: Anything, mel: Tensor) -> Tensor:
    """Return the features of audio that fills all frames."""
    mask = torch.ones(1, mel.shape[-1], dtype=torch.int64)
    features: Tensor = model.model.get_audio_features(mel, mask).pooler_output
    return features


# -- tests -------------------------------------------------------------------------------

POSITIONS, BINS, TOKEN = 24, 16, 190
TOKENS = [[3, 1, 4, 1, 5, 9, 2], [6], [5, 3]]


def config() -> transformers.GlmAsrConfig:
    text = {
        "model_type": "llama", "vocab_size": 200, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 128,
        "pad_token_id": 0, "eos_token_id": 1,
    }  # fmt: skip
    audio = {
        "hidden_size": 48, "intermediate_size": 192, "num_hidden_layers": 2, "num_attention_heads": 3,
        "max_position_embeddings": POSITIONS, "num_mel_bins": BINS,
    }  # fmt: skip
    return transformers.GlmAsrConfig(text_config=text, audio_config=audio, audio_token_id=TOKEN)


def save(folder: Path) -> Anything:
    model = randomize(transformers.GlmAsrForConditionalGeneration(config()))
    model.save_pretrained(folder)
    return model


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where traces are kept, which are the same in each precision."""
    return tmp_path_factory.mktemp("cache")


@pytest.mark.parametrize(("precision", "limit"), [("fp32", 1e-5), ("int8", 0.05)])
def test_a_bundle_hears_and_answers_as_transformers_does(
    precision: str, limit: float, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(monkeypatch, cache, GLM_ASR)
    model = save(tmp_path / "model")
    made = make(tmp_path / "model", precision, tmp_path / "bundle")
    assert [module.name for module in made.modules] == ["embedding", "audio", "decoder"]
    assert max(module.max_relative_error or 0 for module in made.modules) <= limit
    assert made.model.audio is not None
    assert (made.model.audio.audio_token_id, made.model.audio.tokens) == (TOKEN, POSITIONS // 4)
    bundle = load_bundle(tmp_path / "bundle")
    verify_bundle(bundle)
    module = bundle.encoder("audio")
    assert module is not None
    mel = np.random.default_rng(1).standard_normal((1, BINS, 2 * POSITIONS), np.float32)
    (features,) = open_session(bundle.path(module.file), 1).run(["features"], {"input_features": mel})
    with torch.no_grad():
        want = features_of(model, torch.from_numpy(mel)).numpy()
    assert features.shape == want.shape == (POSITIONS // 4, 64)
    assert error(features, want) <= limit
    for got, expected in zip(steps(bundle, TOKENS), original_steps(model, TOKENS), strict=True):
        assert error(got, expected) <= limit


def test_audio_in_a_conversation_is_refused_in_a_line() -> None:
    """Until the runner reads sound, a bundle with an audio module is a text model."""
    sound = {"type": "input_audio", "input_audio": {"data": "UklGRg==", "format": "wav"}}
    with pytest.raises(UnsupportedError) as refused:
        normalize([{"role": "user", "content": [sound]}])
    assert str(refused.value) == "message 1: holds a part of type audio, which no model here takes; leave it out"


def test_a_tower_that_is_rotated_otherwise_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    register(monkeypatch, tmp_path, GLM_ASR)
    run = Tracer.run

    def wrong(tracer: Tracer) -> dict[str, bytes]:
        with monkeypatch.context() as patch:
            patch.setattr(modeling_glmasr, "rotate_half", lambda x: x.flip(-1))
            return run(tracer)

    monkeypatch.setattr(Tracer, "run", wrong)
    settings = {**config().to_dict(), "architectures": [GLM_ASR.architecture]}
    with pytest.raises(UnsupportedError, match=r"^audio block: the traced graph differs from transformers by "):
        trace([TraceRequest(json.dumps(settings), "ort", 64)])


# -- the piece for overlapping convolutions ----------------------------------------------


@pytest.mark.parametrize(("kernel", "stride", "padding"), [(3, 1, 1), (3, 2, 1), (5, 3, 2), (4, 2, 0)])
def test_windows_times_a_matrix_are_a_convolution(kernel: int, stride: int, padding: int) -> None:
    convolution = nn.Conv1d(6, 5, kernel, stride, padding)
    windows = WindowLinear("conv", convolution).windows
    x = torch.randn(1, 6, 17)
    product = nn.functional.linear(windows(x), convolution.weight.flatten(1), convolution.bias)
    assert torch.allclose(product.transpose(1, 2), convolution(x), atol=1e-6)
