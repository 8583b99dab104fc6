"""Values of a body's JSON, counted before it is read: a byte or two of it may become an object of hundreds of bytes."""

from __future__ import annotations

import re
from contextlib import suppress
from itertools import islice

import msgspec
from msgspec import Raw, Struct

# Each value but the first of its list or object stands behind a comma; a key is counted too, as a text.
MARKS = (b"{", b"[", b",")
TOKEN = re.compile(rb'[{\[,]|"[^"]*"')
# Below so many marks, those in texts may count too.
FEW = 4096


def count_values(body: bytes | bytearray, most: int) -> int:
    """Return an upper bound on the objects that JSON becomes; beyond `most` it is not counted on."""
    marks = sum(body.count(mark) for mark in MARKS)
    if marks <= FEW:
        return marks
    bare = body.replace(b"\\\\", b"").replace(b'\\"', b"") if b"\\" in body else body
    return sum(1 for _ in islice(TOKEN.finditer(bare), most + 1))


class _Conversation(Struct):
    messages: list[Raw] = []


def count_messages(body: bytes | bytearray) -> int:
    """Return how many messages a request has, none of which is read; 0 if it is no request."""
    with suppress(msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
        return len(msgspec.json.decode(body, type=_Conversation).messages)
    return 0
