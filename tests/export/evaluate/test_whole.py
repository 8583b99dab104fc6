"""The original in transformers: a checkpoint of any family answers, each chat as if it were alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from PIL import Image

from edgeglm.export.evaluate.original.drafter import MAX_NEW_TOKENS
from edgeglm.export.evaluate.original.whole import WholeOriginal
from tests.cli.test_validate_text import write_tokenizer
from tests.export.tiny import SHAPES, save

ENDS = [7, 8, 9]
CHATS = [[{"role": "user", "content": text}] for text in ("Hi", "Open the settings, please", "12 + 30")]
TEMPLATE = (
    "{% for message in messages %}<{{ message.role }}>{% if message.content is string %}{{ message.content }}"
    "{% else %}{% for part in message.content %}{{ part.text if part.type == 'text' else 'IMAGE' }}{% endfor %}"
    "{% endif %}{% endfor %}<assistant>"
)


def make(name: str, folder: Path, **generation: object) -> Any:  # noqa: ANN401 (a class of transformers)
    """Write a checkpoint with a tokenizer and a template; it answers until an end token, or as long as can be."""
    model = save(SHAPES[name], folder)
    write_tokenizer(folder / "tokenizer.json")
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": ENDS, **generation}))
    return model


@pytest.mark.parametrize("name", ["glm", "glm4"])
def test_a_text_model_answers_each_chat_with_its_likeliest_tokens(name: str, tmp_path: Path) -> None:
    # Settings that would change greedy answers do not count.
    model = make(name, tmp_path, do_sample=True, temperature=2.0, no_repeat_ngram_size=2, repetition_penalty=1.5)
    whole = WholeOriginal.load(tmp_path)
    answers = whole.generate(whole.encode([], CHATS)).tolist()
    assert list(whole.answer([], CHATS)) == whole.tokenizer.batch_decode(answers, skip_special_tokens=True)
    for chat, padded in zip(CHATS, answers, strict=True):
        ends = [index for index, token in enumerate(padded) if token in ENDS]
        answer = padded[: ends[0] + 1] if ends else padded
        assert ends or len(answer) == MAX_NEW_TOKENS
        prompt = whole.encode([], [chat])["input_ids"][0].tolist()
        with torch.inference_mode():
            logits = model(input_ids=torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
        assert logits.argmax(-1).tolist() == answer
    assert len(set(map(tuple, answers))) > 1


def test_a_model_that_sees_answers_with_or_without_images(tmp_path: Path) -> None:
    make("glm4v", tmp_path)
    whole = WholeOriginal.load(tmp_path)
    assert len(list(whole.answer([], CHATS))) == len(CHATS)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 48, 3), np.uint8))
    whole.template = TEMPLATE.replace("IMAGE", "~")
    whole.image = whole.model.config.image_token_id = whole.tokenizer.convert_tokens_to_ids("~")
    chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Tap OK"}]}]
    small, large = image, image.resize((480, 640))
    inputs = whole.encode([small, large], [chat, chat])
    counts = (inputs["input_ids"] == whole.image).sum(-1)
    assert counts.tolist() == (inputs["image_grid_thw"].prod(-1) // whole.processor.merge_size**2).tolist()
    assert counts[0] < counts[1]
    together, single = list(whole.answer([small, large], [chat, chat])), list(whole.answer([small], [chat]))
    assert together[:1] == single
