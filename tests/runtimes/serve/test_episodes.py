"""Episodes over HTTP: the oracle behind the server's address reaches every goal, the served demo plays to the end."""

from __future__ import annotations

import base64
import io
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("PIL")
pytest.importorskip("uvicorn", reason="needs the extra serve")
pytest.importorskip("openai")

import openai
import uvicorn
from click.testing import CliRunner
from PIL import Image
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from edgeglm.actions import parse_action
from edgeglm.export.demo.client import first_text, later_text
from edgeglm.export.demo.episodes import LIMIT, main, play_goals, sample_goals, summarize
from edgeglm.export.demo.goals import Goal, play
from edgeglm.export.demo.phone import Phone
from edgeglm.export.demo.prompts import client_prompt
from edgeglm.export.demo.render import render
from edgeglm.export.demo.steps import Step

SYSTEM = client_prompt("en", date(2026, 11, 29))


class OracleServer:
    """Answers requests of the client's form with the oracle's steps; keeps what it was sent."""

    def __init__(self, goals: list[tuple[Goal, Phone]]) -> None:
        self.steps: dict[str, list[tuple[Image.Image, Step]]] = {}
        for goal, phone in goals:
            self.steps[goal.wish] = [(render(scene), step) for scene, step in play(goal, phone.copy())]
        self.bodies: list[dict[str, Any]] = []

    async def answer(self, request: Request) -> Response:
        body = json.loads(await request.body())
        self.bodies.append(body)
        wish = body["messages"][1]["content"][-1]["text"].split("\n\n")[0]
        picture, step = self.steps[wish][len(body["messages"]) // 2 - 1]
        if self.picture(body).tobytes() != picture.tobytes():
            return JSONResponse({"error": {"message": "another screen", "type": "x"}}, 400)
        pieces = step.response.removesuffix("</answer>").partition("Launch")
        chunks = [{"choices": [{"index": 0, "delta": {"content": piece}}]} for piece in pieces]
        chunks.insert(1, {"choices": []})
        lines = [f"data: {json.dumps(chunk)}\n\n" for chunk in chunks]
        return Response("".join([*lines, "data: [DONE]\n\n"]), media_type="text/event-stream")

    @staticmethod
    def picture(body: dict[str, Any]) -> Image.Image:
        url = body["messages"][-1]["content"][0]["image_url"]["url"]
        return Image.open(io.BytesIO(base64.b64decode(url.removeprefix("data:image/png;base64,"))))


@contextmanager
def listening(oracle: OracleServer) -> Iterator[str]:
    """Serve an oracle on a free port."""
    app = Starlette(routes=[Route("/v1/chat/completions", oracle.answer, methods=["POST"])])
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="off"))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
        server.should_exit = True
        thread.join(30)


def client_of(url: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=url, api_key="EMPTY", timeout=120, max_retries=0)


@pytest.mark.parametrize("language", ["en", "cn"])
def test_right_answers_reach_every_goal(language: str) -> None:
    goals = sample_goals(12, language, 0)
    oracle = OracleServer(goals)
    with listening(oracle) as url:
        episodes = list(play_goals(client_of(url), "any", SYSTEM, goals, lambda line: None))
    assert [episode.why for episode in episodes] == [""] * 12
    summary = summarize(episodes)
    assert (summary["reached"], summary["share"]) == (12, 1.0)
    assert summary["steps"] == summary["oracle_steps"] == len(oracle.bodies)
    assert 0 < summary["median_first_seconds"] <= summary["median_seconds"]


def test_requests_have_the_clients_form() -> None:
    goals = sample_goals(1, "en", 1)
    oracle = OracleServer(goals)
    with listening(oracle) as url:
        list(play_goals(client_of(url), "autoglm-phone-9b", SYSTEM, goals, lambda line: None))
    goal, phone = goals[0]
    steps = [step for _, step in play(goal, phone.copy())]
    last = oracle.bodies[-1]
    settings = {name: value for name, value in last.items() if name != "messages"}
    assert settings == {
        "model": "autoglm-phone-9b", "stream": True, "max_tokens": 3000, "temperature": 0.0, "top_p": 0.85,
        "frequency_penalty": 0.2,
    }  # fmt: skip
    system, first, *rest = last["messages"]
    assert system == {"role": "system", "content": SYSTEM}
    assert first == {"role": "user", "content": [{"type": "text", "text": first_text(goal.wish, steps[0].app)}]}
    wrapped = steps[0].response.partition("do(")
    assert rest[0] == {
        "role": "assistant",
        "content": f"<think>{wrapped[0]}</think><answer>{wrapped[1]}{wrapped[2]}",
    }
    assert [part["type"] for part in rest[-1]["content"]] == ["image_url", "text"]
    assert rest[-1]["content"][1]["text"] == later_text(steps[-1].app)
    assert all(message["content"][0]["type"] == "text" for message in last["messages"][1:-1:2])


def test_wrong_answers_fail_with_a_reason() -> None:
    goals = sample_goals(3, "en", 2)
    oracle = OracleServer(goals)
    # Nothing is done, an action that the client cannot read, an error of the server.
    done, broken, missing = (goal.wish for goal, _ in goals)
    oracle.steps[done] = [oracle.steps[done][0]] * LIMIT
    picture, step = oracle.steps[broken][0]
    oracle.steps[broken] = [(picture, Step(step.instruction, (), "", "do(action=Tap"))]
    del oracle.steps[missing][0]
    with listening(oracle) as url:
        stuck, unreadable, refused = play_goals(client_of(url), "any", SYSTEM, goals, lambda line: None)
    assert [episode.is_reached for episode in (stuck, unreadable, refused)] == [False] * 3
    assert "another screen" in stuck.why
    assert unreadable.why.startswith("ValueError: ")
    assert "another screen" in refused.why
    assert summarize([stuck, unreadable, refused])["reached"] == 0


def test_the_served_demo_plays_goals_to_their_end(exact: Path) -> None:
    done = CliRunner().invoke(main, ["--bundle", str(exact), "--goals", "2", "--steps"])
    assert done.exit_code == 0, done.output
    lines = done.output.splitlines()
    assert sum(line.startswith(("reached", "FAILED")) for line in lines) == 2
    assert any(parse_action(line) for line in lines)
    assert "goals reached" in lines[-4]


def test_a_bundle_that_cannot_be_served_ends_with_the_servers_exit_code(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert CliRunner().invoke(main, ["--bundle", str(tmp_path / "none")]).exit_code == 2
    assert capfd.readouterr().err.startswith(f"edgeglm: {tmp_path}/none: ")


def test_a_server_or_a_bundle_is_asked_for() -> None:
    for arguments in ([], ["--url", "http://127.0.0.1:1/v1", "--bundle", "none"]):
        done = CliRunner().invoke(main, arguments)
        assert (done.exit_code, "give either --url or --bundle" in done.output) == (2, True)
