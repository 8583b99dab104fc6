"""The pieces of texts that the demo's tokenizer makes."""

from __future__ import annotations

from collections import Counter
from random import Random

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from tokenizers import Tokenizer

from edgeglm.export.demo.evaluate import CHECKPOINT
from edgeglm.export.demo.vocabulary import drop_merges, train_bpe
from edgeglm.export.demo.words import sample_text

TEXTS, RARE = 4000, 6


def rare_share(bpe: Tokenizer) -> float:
    """Return the share of a text's tokens that have several characters and are in few texts."""
    random = Random("test")
    encodings = bpe.encode_batch([f'"{sample_text(random)}"' for _ in range(TEXTS)], add_special_tokens=False)
    uses = Counter(token for encoding in encodings for token in encoding.tokens)
    rare = [token for token, count in uses.items() if count <= RARE and len(bpe.decoder.decode([token])) > 1]
    return sum(uses[token] for token in rare) / uses.total()


def test_the_shipped_tokenizer_makes_few_rare_tokens_of_texts() -> None:
    assert rare_share(Tokenizer.from_file(str(CHECKPOINT / "tokenizer.json"))) < 0.02


def test_merges_of_rare_tokens_are_dropped_and_no_text_is_lost() -> None:
    bpe = train_bpe(4000, samples=3000)
    better = drop_merges(bpe, samples=3000)
    assert rare_share(better) < 0.85 * rare_share(bpe)
    assert better.get_vocab() == bpe.get_vocab()
    for text in ('在旅行里按编辑按钮，然后查找"乐河茶 siheatlur"', "Open Maps and tap the pencil", "naïve 🙂\n\t"):
        assert better.decode(better.encode(text).ids) == text
