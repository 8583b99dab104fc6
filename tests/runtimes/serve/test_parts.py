"""The server's parts without HTTP: requests as types, answers as chunks, bundles under one budget."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pytest

pytest.importorskip("uvicorn", reason="needs the extra serve")

from edgeglm.errors import BudgetError, DamagedFileError, UnsupportedError, UsageError
from edgeglm.runtimes.core.runner import Runner
from edgeglm.runtimes.serve.answers import Delta, Event, Finished, Started, TokenScore
from edgeglm.runtimes.serve.completions import chat_work, kind_of, variables
from edgeglm.runtimes.serve.engine import Engine
from edgeglm.runtimes.serve.errors import ApiError, to_api
from edgeglm.runtimes.serve.program import named, read_keys
from edgeglm.runtimes.serve.release import Idle
from edgeglm.runtimes.serve.responses import Completion
from edgeglm.runtimes.serve.schema import (
    ChatRequest,
    DetokenizeRequest,
    TextRequest,
    TokenizeRequest,
    check_chat,
    decode,
)
from tests.cli.commands import ROOT
from tests.runtimes.serve.conftest import question


def test_an_unknown_field_is_ignored_and_a_wrong_one_is_named() -> None:
    asked = decode(b'{"messages": [], "mirostat": 2, "temperature": null, "stop": "x"}', ChatRequest)
    check_chat(asked)
    assert (asked.temperature, asked.stops) == (None, ("x",))
    for body, field in (
        (b'{"messages": [], "seed": "x"}', "seed"),
        (b"{}", "messages"),
        (b'{"messages": [1]}', "messages"),
        (b'{"messages": [], "priority": "urgent"}', "priority"),
        (b'{"messages": [], "user": 1}', "user"),
    ):
        with pytest.raises(ApiError) as caught:
            decode(body, ChatRequest)
        assert (caught.value.status, caught.value.param) == (400, field)
    with pytest.raises(ApiError, match="low, normal, high"):
        decode(b'{"messages": [], "priority": "urgent"}', ChatRequest)


@pytest.mark.parametrize(
    ("parts", "kind"),
    [
        ("Select OK", "text"),
        ([{"type": "text", "text": "image_url"}], "text"),
        ([{"type": "text", "text": "x"}, {"type": "image_url", "image_url": {"url": "data:"}}], "vision"),
        ([{"image": "x"}], "vision"),
        ([{"type": "image"}, {"type": "input_audio"}], "speech"),
        ([1, None, {}], "text"),
    ],
)
def test_the_kind_of_a_request_is_what_its_messages_hold(parts: object, kind: str) -> None:
    assert kind_of([{"role": "system", "content": "x"}, {"role": "user", "content": parts}]) == kind


def test_a_template_is_told_of_thinking_in_either_form() -> None:
    asked = decode(b'{"messages": [], "enable_thinking": false, "chat_template_kwargs": {"a": 1}}', ChatRequest)
    assert variables(asked) == {"enable_thinking": False, "a": 1}
    asked = decode(b'{"messages": [], "chat_template_kwargs": {"enable_thinking": true}}', ChatRequest)
    assert variables(asked) == {"enable_thinking": True}


def test_chunks_add_up_to_the_whole() -> None:
    score = TokenScore("do", -0.5, b"do", (TokenScore("do", -0.5, b"do"),))
    events: list[Event] = [Started(5), Delta(0, "do", "", (score,)), Delta(0, "", "why"), Finished(0, "stop", 2, 3, 1)]
    whole, stream = Completion("m", True), Completion("m", True, usage_chunk=True)
    chunks = [chunk for event in events for chunk in stream.chunks(event)] + [*stream.end()]
    for event in events:
        whole.take(event)
    (choice,) = json.loads(whole.whole())["choices"]
    assert choice["message"] == {"role": "assistant", "content": "do", "reasoning_content": "why"}
    assert choice["logprobs"]["content"][0]["bytes"] == [100, 111]
    assert chunks[-1] == b"data: [DONE]\n\n"
    parsed = [json.loads(chunk.removeprefix(b"data: ")) for chunk in chunks[:-1]]
    assert parsed[0]["choices"][0]["delta"] == {"role": "assistant", "content": "do"}
    assert parsed[-1]["usage"]["prompt_tokens_details"] == {"cached_tokens": 3}
    assert stream.usage == whole.usage


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (UsageError("the prompt", "is empty", "say what to do"), 400, None),
        (BudgetError("context", "is too short", "shorten the prompt"), 400, "context_length_exceeded"),
        (DamagedFileError("/srv/secret", "was changed", "copy it again"), 500, None),
        (UnsupportedError("/srv/secret/chat_template.jinja", "refuses it", "change it"), 400, None),
        (MemoryError(), 503, None),
        (ZeroDivisionError("secret"), 500, None),
    ],
)
def test_errors_say_to_a_client_what_it_may_know(error: Exception, status: int, code: str | None) -> None:
    told = to_api(error)
    assert (told.status, told.code) == (status, code)
    assert "secret" not in told.message


def test_bundles_share_one_budget(exact: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(exact, tmp_path / "other"))
    peak = 200 << 20  # of one of them, and not of both
    open_runner = partial(Runner, max_ram=None)
    engine = Engine(named([exact, other]), open_runner, waiting=4, idle=Idle(), max_ram=peak)
    assert peak < 2 * min(map(engine.bundles.peak, engine.bundles.folders))
    engine.start()
    try:
        assert [*engine.bundles.loaded] == ["other"]

        async def ask(name: str) -> Sequence[object]:
            asked = decode(json.dumps({"messages": question("Select OK"), "max_tokens": 2}).encode(), ChatRequest)
            job, events = engine.submit(name, chat_work(asked)), []
            while (event := await job.events.get()) is not None:
                events.append(event)
            return events

        assert isinstance(asyncio.run(ask(exact.name))[0], Started)
        assert [*engine.bundles.loaded] == [exact.name]
        assert b"edgeglm_bundles_loaded 1.0" in engine.metrics.page()
    finally:
        engine.stop()
    assert engine.bundles.loaded == {}


@pytest.mark.parametrize("kind", [ChatRequest, TextRequest, TokenizeRequest, DetokenizeRequest])
def test_the_docs_name_every_field(kind: type[ChatRequest]) -> None:
    page = (ROOT / "docs/serve.md").read_text()
    assert [field for field in kind.__struct_fields__ if f"`{field}`" not in page and f"`{field}." not in page] == []


def test_a_file_without_keys_says_why(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"nothing: cannot be read: No such file or directory; give"):
        read_keys(tmp_path / "nothing")
    (tmp_path / "bytes").write_bytes(b"\xff")
    with pytest.raises(UsageError, match="it is no UTF-8"):
        read_keys(tmp_path / "bytes")


def test_keys_are_lines(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text("# none\n a \n\nb\n")
    assert read_keys(path) == ("a", "b")
    path.write_text("# none\n")
    with pytest.raises(UsageError, match="has no key"):
        read_keys(path)
