"""Bytes of tokens: those of a byte-level vocabulary are told, those of another are none."""

from __future__ import annotations

from tokenizers import Tokenizer, models

from edgeglm.runtimes.text.token_bytes import byte_letters, token_bytes


def test_every_byte_has_a_letter() -> None:
    letters = {chr(letter): byte for letter, byte in byte_letters().items() if byte < 256}
    assert sorted(letters.values()) == list(range(256))
    assert {"A": 0x41, "Ġ": 0x20, "Ċ": 0x0A, "ł": 0xA0}.items() <= letters.items()


def test_a_token_has_its_bytes_or_none() -> None:
    words = {"Ã©": 0, "ð": 1, "Ġok": 2, "数": 3, "é x": 4}
    tokenizer = Tokenizer(models.BPE(words, []))
    assert [token_bytes(tokenizer, token) for token in range(5)] == ["é".encode(), b"\xf0", b" ok", None, None]
