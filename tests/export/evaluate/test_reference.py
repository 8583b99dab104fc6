"""The streamed original: equal to transformers' own forward for every text family, in the memory of one block."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import numpy as np
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

from edgeglm.errors import DamagedFileError, UsageError
from edgeglm.export.checkpoint.reader import Checkpoint
from edgeglm.export.evaluate.original import decoder as reference
from edgeglm.export.evaluate.original.decoder import StreamedDecoder
from tests.export.tiny import SHAPES, save

ROOT = Path(__file__).parents[3]


def sequences(count: int = 5, length: int = 33, vocabulary: int = 250) -> NDArray[np.int64]:
    return np.random.default_rng(3).integers(0, vocabulary, (count, length))


@pytest.mark.parametrize("name", SHAPES)
def test_it_equals_transformers(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model: Any = save(SHAPES[name], tmp_path)
    # So that weights come in many pieces, the vocabulary in several and the sequences in three batches.
    monkeypatch.setattr(reference, "CHUNK_BYTES", 1 << 13)
    monkeypatch.setattr(reference, "BATCH_BYTES", 2 * 4 * 32 * SHAPES[name].hidden)
    tokens = sequences()
    streamed = StreamedDecoder(Checkpoint.open(tmp_path))
    with torch.inference_mode():
        logits = model(input_ids=torch.from_numpy(tokens[:, :-1])).logits
        mine = streamed.hidden(tokens[:, :-1]) @ model.lm_head.weight.T
    np.testing.assert_allclose(mine.numpy(), logits.numpy(), atol=1e-4)
    log_probabilities, top = streamed.score(tokens, 20)
    every = logits[:, -20:].log_softmax(-1)
    targets = torch.from_numpy(tokens[:, -20:, None])
    np.testing.assert_allclose(log_probabilities, every.gather(-1, targets)[..., 0].numpy(), atol=1e-4)
    assert (top == every.argmax(-1).numpy()).all()


def test_sequences_do_not_see_each_other(tmp_path: Path) -> None:
    save(SHAPES["glm4"], tmp_path)
    streamed, tokens = StreamedDecoder(Checkpoint.open(tmp_path)), sequences()
    together = streamed.score(tokens, 32)[0]
    alone = np.concatenate([streamed.score(tokens[index : index + 1], 32)[0] for index in range(len(tokens))])
    np.testing.assert_array_equal(together, alone)


def test_another_vocabulary_is_refused(tmp_path: Path) -> None:
    save(SHAPES["glm"], tmp_path)
    tokens = sequences()
    tokens[2, 5] = 256
    with pytest.raises(UsageError, match="has 256 tokens, and the text's are of another vocabulary"):
        StreamedDecoder(Checkpoint.open(tmp_path)).score(tokens, 4)


def test_a_weight_of_another_shape_is_named(tmp_path: Path) -> None:
    save(SHAPES["glm"], tmp_path)
    weights, name = load_file(tmp_path / "model.safetensors"), "model.layers.1.mlp.down_proj.weight"
    weights[name] = weights[name][:, :-1].contiguous()
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(DamagedFileError, match=r"layers\.1\.mlp\.down_proj\.weight: has the shape \[96, 159\]"):
        StreamedDecoder(Checkpoint.open(tmp_path)).score(sequences(), 4)


PEAK = """
import sys; from pathlib import Path; import numpy as np
from edgeglm.export.checkpoint.reader import Checkpoint
from edgeglm.export.evaluate.original.decoder import StreamedDecoder
from edgeglm.memory import peak_rss
folder = Path(sys.argv[1])
StreamedDecoder(Checkpoint.open(folder)).score(np.arange(2 * 65).reshape(2, 65), 64)
print(peak_rss())
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_layers(tmp_path: Path) -> None:
    peaks = {}
    for layers in (2, 12):
        config = transformers.GlmConfig(
            vocab_size=1024,
            hidden_size=512,
            intermediate_size=2048,
            num_hidden_layers=layers,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=128,
            pad_token_id=0,
        )
        folder = tmp_path / f"{layers}"
        transformers.GlmForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
        done = subprocess.run(
            [sys.executable, "-c", PEAK, folder], cwd=ROOT, capture_output=True, text=True, check=True
        )
        peaks[layers] = int(done.stdout)
    # Ten layers of 3.9 million weights are 150 MiB in fp32.
    assert peaks[12] - peaks[2] < 32 << 20
