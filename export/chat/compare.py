"""Compare what the device makes of conversations with what transformers makes of them."""

from __future__ import annotations

import hashlib
from importlib import metadata
from pathlib import Path

import msgspec

from edgeglm.errors import EdgeglmError, UnsupportedError
from edgeglm.export.chat.cases import cases
from edgeglm.export.chat.chat_request import NOW, Answer, Case, Rendered, Request
from edgeglm.runtimes.text.chat import Chat
from edgeglm.runtimes.text.messages import normalize
from edgeglm.store import find, keep, making
from edgeglm.worker import Crashed, Overdue, Worker

SECONDS = 180  # that transformers may take; our own limits were kept before it is asked
TRANSFORMERS = Worker("edgeglm.export.chat.chat_worker", Answer, "the process with transformers", seconds=SECONDS)
LIBRARIES = ("transformers", "tokenizers", "jinja2")
AROUND = 24  # characters that are shown of a difference
KIND = "chats"  # in the cache


def compare(chat: Chat, *, sees: bool, images: bool = True) -> str | None:
    """Render and encode conversations on both sides; returns a note where transformers cannot.

    Args:
        chat: The checkpoint's.
        sees: Whether the model takes images.
        images: Whether the template has a place for them; without one, conversations with images are not compared.

    Raises:
        UnsupportedError: A text or its tokens differ: the model would be asked what it never learnt.
    """
    if chat.template is None:
        return None
    request = Request(str(chat.sidecars.folder), sees, cases(sees=sees and images))
    ours = [_ours(chat, case) for case in request.cases]
    answer = _theirs(request, chat)
    if answer.error is not None:
        return f"transformers does not load the tokenizer, so that prompts are not compared: {answer.error}"
    for case, mine, theirs in zip(request.cases, ours, answer.rendered, strict=True):
        if theirs.error is None and mine != theirs:
            _refuse(chat, case, mine, theirs)
    return None


def _ours(chat: Chat, case: Case) -> Rendered:
    assert chat.template is not None
    chat.template.now = NOW
    try:
        text = chat.render(normalize(case.messages), case.tools)
        return Rendered(text, chat.bounded.encode(text))
    except EdgeglmError as error:
        return Rendered(error=error.why)
    finally:
        chat.template.now = None


def _refuse(chat: Chat, case: Case, mine: Rendered, theirs: Rendered) -> None:
    assert chat.template is not None
    version = f"transformers {metadata.version('transformers')}"
    if mine.error is not None:
        what, why = chat.template.file, f"{case.name}: {mine.error}, and {version} renders it"
    elif mine.text != theirs.text:
        what, why = chat.template.file, f"{case.name} is rendered as {_difference(mine.text or '', theirs.text or '')}"
    else:
        what, why = chat.bounded.file, f"{case.name} has other tokens than in {version}"
    raise UnsupportedError(what, why, "report it: edgeglm would ask the model what it has not learnt")


def _difference(mine: str, theirs: str) -> str:
    pairs = enumerate(zip(mine, theirs, strict=False))
    begin = next((index for index, (left, right) in pairs if left != right), min(len(mine), len(theirs)))
    left, right = (ascii(text[begin : begin + AROUND]) for text in (mine, theirs))
    return f"{left} at character {begin}, where transformers has {right}"


def _theirs(request: Request, chat: Chat) -> Answer:
    """Return what transformers makes of a request, kept in the cache by all that makes it."""
    key = _key(request, chat)
    with making(KIND, key):
        if (kept := find(KIND, key)) is not None:
            return msgspec.json.decode(kept[KIND], type=Answer)
        answer = msgspec.json.decode(data := _ask(request), type=Answer)
        if answer.error is None:
            keep(KIND, key, {KIND: data})
    return answer


def _key(request: Request, chat: Chat) -> str:
    digest = hashlib.sha256(msgspec.json.encode([request.sees, request.cases]))
    digest.update(repr([(name, metadata.version(name)) for name in LIBRARIES]).encode())
    files = [*chat.files(), *Path(__file__).parent.glob("*.py")]
    for path in sorted(files, key=lambda path: path.name):
        digest.update(f"{path.name}\n{path.stat().st_size}\n".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:32]


def _ask(request: Request) -> bytes:
    """Return the answer of transformers' own process; if it ends without one, the reason."""
    try:
        answer = TRANSFORMERS.run(request, "chat template")
    except Overdue:
        answer = Answer(error=f"it takes more than {SECONDS} seconds")
    except Crashed as error:
        answer = Answer(error=f"its process ended: {error}")
    return msgspec.json.encode(answer)
