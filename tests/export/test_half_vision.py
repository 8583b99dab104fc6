"""A vision module in half precision for pictures larger than the original is computed for, and a picture in a probe."""

from __future__ import annotations

from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from edgeglm.bundle import load_bundle, verify_bundle
from edgeglm.devices.loader import load_profile
from edgeglm.export.pipeline.export import export
from edgeglm.export.predict.forecast import predict
from edgeglm.export.prepare.preparation import open_export, prepare
from edgeglm.export.prepare.types import Request
from edgeglm.export.prove.probes import chat_prompts, special_prompts
from tests.export.tiny import SHAPES, save

# As in the tiny checkpoint's config: picture, video, and where they begin and end.
SPECIAL = dict(enumerate(["<|image|>", "<|video|>", "<|bi|>", "<|ei|>", "<|bv|>", "<|ev|>"], start=250))
TEMPLATE = (
    "{% for m in messages %}{% if m.content is string %}{{ m.content }}{% else %}{% for p in m.content %}"
    "{% if p.type == 'image' %}<|bi|><|image|><|ei|>{% else %}{{ p.text }}{% endif %}{% endfor %}{% endif %}"
    "{% endfor %}"
)


def write_tokenizer(folder: Path) -> None:
    vocabulary = {piece: number for number, piece in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet())[:250])}
    vocabulary |= {name: number for number, name in SPECIAL.items()}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(SPECIAL.values()))
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "chat_template.jinja").write_text(TEMPLATE)


def test_a_large_picture_is_proven_on_a_part_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgeglm.export.prepare.preparation.PROBE_PATCHES", 64)
    save(SHAPES["glm4v"], tmp_path / "model")
    write_tokenizer(tmp_path / "model")
    request = Request(tmp_path / "model", "tiny", load_profile("jetson-orin"), "int8", image_sizes=((112, 280),))
    prepared = prepare(open_export(request))
    assert prepared.model.vision is not None
    assert prepared.probe.model.vision is not None
    assert (prepared.model.vision.grid, prepared.probe.model.vision.grid) == ((20, 8), (16, 8))
    (prompt,), (special,) = chat_prompts(prepared), special_prompts(prepared)
    assert prompt.grid == (8, 4)
    assert prompt.is_image.sum() == 32
    assert sorted(special.tokens) == [token for token in SPECIAL if token != 250]
    made, _ = export(prepared, tmp_path / "bundle", predict(prepared), lambda _: None)
    verify_bundle(load_bundle(tmp_path / "bundle"))
    for module in made.modules[1:]:
        assert module.max_relative_error is not None
        assert 1e-4 < module.max_relative_error < 0.1
        assert module.fp32_values == ()
