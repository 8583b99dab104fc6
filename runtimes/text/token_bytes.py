"""Bytes of a byte-level tokenizer's tokens: each letter of a token in its vocabulary stands for one."""

from __future__ import annotations

from tokenizers import Tokenizer


def token_bytes(tokenizer: Tokenizer, token: int) -> bytes | None:
    """Return the bytes of a token that is no added one; None if it is not made of bytes."""
    try:
        return str(tokenizer.id_to_token(token)).translate(byte_letters()).encode("latin-1")
    except UnicodeEncodeError:
        return None


def byte_letters() -> dict[int, int]:
    """Return the bytes that letters of byte-level tokenizers stand for: printable ones for themselves.

    A letter below 256 that stands for none stays one that is no byte.
    """
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    further = [byte for byte in range(256) if byte not in printable]
    none = dict.fromkeys(further, 256 + len(further))
    return {**none, **{byte: byte for byte in printable}, **{256 + place: byte for place, byte in enumerate(further)}}
