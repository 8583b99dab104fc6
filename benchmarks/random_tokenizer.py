"""A tokenizer of GLM-4's size and special tokens, and a chat template of its form, for a random checkpoint.

Its words are all pairs of bytes, and of 17 letters all triples and most groups of four: 151,329 words, as GLM-4 has,
with 317,234 merges, where GLM-4's have 318,088. What it takes in memory is what theirs does. Most pairs of bytes are no
characters, so random tokens come as text late or never. For what streams there is a vocabulary of ASCII alone.
"""

from __future__ import annotations

import json
from itertools import chain, islice, product
from pathlib import Path

from tokenizers import pre_tokenizers

# As many as zai-org/GLM-4.1V-9B-Thinking has, and in front of its special tokens.
WORDS = 151_329
SPECIAL = (
    "<|endoftext|>", "[MASK]", "[gMASK]", "[sMASK]", "<sop>", "<eop>", "<|system|>", "<|user|>", "<|assistant|>",
    "<|observation|>", "<|begin_of_image|>", "<|end_of_image|>", "<|begin_of_video|>", "<|end_of_video|>",
    "<|image|>", "<|video|>", "<think>", "</think>",
)  # fmt: skip
END = "<|user|>"
TEMPLATE = """\
[gMASK]<sop>{% for m in messages %}<|{{ m.role }}|>
{% if m.content is string %}{{ m.content }}{% else %}{% for part in m.content %}{% if part.type == 'image' %}\
<|begin_of_image|><|image|><|end_of_image|>{% elif part.type == 'text' %}{{ part.text }}{% endif %}{% endfor %}\
{% endif %}{% endfor %}{% if add_generation_prompt %}<|assistant|>
{% endif %}"""
LETTERS = "acdefhilmnorstuwy"
ASCII = [chr(code) for code in range(ord("!"), ord("~") + 1)]
PATTERN = r"'(?:s|t|re|ve|m|ll|d)| ?\p{L}+| ?\p{N}{1,3}| ?[^\s\p{L}\p{N}]+|\s+"


def write_tokenizer(folder: Path, words: int = WORDS, *, is_ascii: bool = False) -> None:
    """Write tokenizer.json of so many words, its config, the chat template and the end token into a folder.

    `is_ascii` says whether all words are ASCII, but for the single bytes that every text can be written with.
    """
    model = _model(words, is_ascii=is_ascii)
    special = [
        {"id": words + index, "content": name, "special": True, "single_word": False, "lstrip": False, "rstrip": False,
         "normalized": False}
        for index, name in enumerate(SPECIAL)
    ]  # fmt: skip
    split = {"type": "Split", "pattern": {"Regex": PATTERN}, "behavior": "Isolated", "invert": False}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    tokenizer = {
        "version": "1.0",
        "added_tokens": special,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, byte_level]},
        "decoder": byte_level,
        "model": model,
    }
    _write(folder / "tokenizer.json", tokenizer)
    _write(folder / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": END})
    _write(folder / "generation_config.json", {"eos_token_id": [words + SPECIAL.index(END)]})
    (folder / "chat_template.jinja").write_text(TEMPLATE)


def _model(count: int, *, is_ascii: bool) -> dict[str, object]:
    """Return words and merges: a longer word is merged of every two words that it can be cut into."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pairs = product(ASCII if is_ascii else alphabet, repeat=2)
    groups = map("".join, chain(pairs, product(LETTERS, repeat=3), product(LETTERS, repeat=4)))
    words = [*alphabet, *islice(groups, count - len(alphabet))]
    merges = [[word[:cut], word[cut:]] for word in words for cut in range(1, len(word))]
    vocabulary = {word: number for number, word in enumerate(words)}
    return {"type": "BPE", "vocab": vocabulary, "merges": merges, "ignore_merges": False, "byte_fallback": False}


def _write(file: Path, value: object) -> None:
    file.write_text(json.dumps(value, ensure_ascii=False, indent=2), encoding="utf-8")
