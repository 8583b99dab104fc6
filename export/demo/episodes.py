"""Play goals on the simulated phone against an OpenAI-compatible server, in the exact form of Open-AutoGLM's client.

``python -m edgeglm.export.demo.episodes --url http://127.0.0.1:8000/v1``, or ``--bundle DIR`` to serve it meanwhile
"""

from __future__ import annotations

import base64
import io
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from random import Random
from statistics import median
from typing import Any

import click
import openai
from PIL import Image

from edgeglm.actions import Action
from edgeglm.export.demo.client import first_text, later_text, read_action, split_answer, wrap_answer
from edgeglm.export.demo.goals import Goal, play
from edgeglm.export.demo.phone import Phone, name_of
from edgeglm.export.demo.prompts import LANGUAGES, client_prompt
from edgeglm.export.demo.render import render
from edgeglm.export.demo.wishes import MOST_STEPS, sample_goal
from edgeglm.process import child

# A goal that takes more steps than twice the longest is given up; Open-AutoGLM itself goes on to 100.
LIMIT = 2 * MOST_STEPS
SETTINGS: dict[str, Any] = {"max_tokens": 3000, "temperature": 0.0, "top_p": 0.85, "frequency_penalty": 0.2}
# The client ends a task at the first error of the server, and so does an episode.
TIMEOUT_SECONDS = 600


@dataclass(frozen=True)
class Reply:
    """An answer: its text, and the seconds until its first piece and its end."""

    content: str
    first_seconds: float
    seconds: float


class Conversation:
    """The messages of one goal, as Open-AutoGLM's client keeps and sends them.

    Args:
        client: Of the server.
        model: Its name in the requests.
        system: The system prompt.
        task: What the user wishes.
    """

    def __init__(self, client: openai.OpenAI, model: str, system: str, task: str) -> None:
        self.client, self.model, self.task = client, model, task
        self.messages: list[dict[str, Any]] = [{"role": "system", "content": system}]

    def ask(self, picture: Image.Image, app: str) -> Reply:
        """Send a screenshot, and return the answer.

        Raises:
            openai.OpenAIError: The server did not answer.
        """
        text = later_text(app) if len(self.messages) > 1 else first_text(self.task, app)
        part = {"type": "text", "text": text}
        self.messages.append({"role": "user", "content": [_image_part(picture), part]})
        reply = self._request()
        # The picture goes; its text stays, as a list.
        self.messages[-1] = {"role": "user", "content": [part]}
        self.messages.append({"role": "assistant", "content": wrap_answer(reply.content)})
        return reply

    def _request(self) -> Reply:
        started, first, pieces = time.perf_counter(), 0.0, list[str]()
        messages: Any = self.messages
        stream = self.client.chat.completions.create(messages=messages, model=self.model, stream=True, **SETTINGS)
        for chunk in stream:
            if chunk.choices and (piece := chunk.choices[0].delta.content) is not None:
                first = first or time.perf_counter() - started
                pieces.append(piece)
        return Reply("".join(pieces), first, time.perf_counter() - started)


def _image_part(picture: Image.Image) -> dict[str, Any]:
    file = io.BytesIO()
    picture.save(file, "PNG")
    data = base64.b64encode(file.getvalue()).decode()
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}}


@dataclass(frozen=True)
class Episode:
    """A goal that was played: whether its state is as wished at the end, why not, and the oracle's steps."""

    wish: str
    is_reached: bool
    why: str
    oracle_steps: int
    replies: tuple[Reply, ...]


def play_episode(goal: Goal, phone: Phone, conversation: Conversation, show: Callable[[str], None]) -> Episode:
    """Perform what the server answers on a copy of a phone until it finishes, errs or takes too long."""
    before, phone = phone, phone.copy()
    oracle_steps = sum(1 for _ in play(goal, before.copy()))
    replies: list[Reply] = []
    why = f"not finished after {LIMIT} steps"
    while len(replies) < LIMIT:
        try:
            reply = conversation.ask(render(phone.scene), name_of(phone.front, goal.language))
            replies.append(reply)
            show(reply.content)
            action = _read(reply)
        except (openai.OpenAIError, ValueError) as error:
            why = f"{type(error).__name__}: {error}"
            break
        if action.type == "finish":
            why = "" if goal.is_reached(phone, before) else "finished without it"
            break
        phone.perform(action)
    return Episode(goal.wish, not why, why, oracle_steps, tuple(replies))


def _read(reply: Reply) -> Action:
    return read_action(split_answer(reply.content)[1])


def play_goals(
    client: openai.OpenAI, model: str, system: str, goals: Sequence[tuple[Goal, Phone]], show: Callable[[str], None]
) -> Iterator[Episode]:
    """Yield the episode of each goal as it ends."""
    for goal, phone in goals:
        yield play_episode(goal, phone, Conversation(client, model, system, goal.wish), show)


def sample_goals(count: int, language: str, seed: int) -> list[tuple[Goal, Phone]]:
    """Return held-out goals: no training has their seeds."""
    return [sample_goal(Random(f"episodes/{seed}/{index}"), language) for index in range(count)]


def summarize(episodes: Sequence[Episode]) -> dict[str, float]:
    """Return how many goals were reached, and medians of steps and seconds."""
    replies = [reply for episode in episodes for reply in episode.replies] or [Reply("", 0.0, 0.0)]
    reached = sum(episode.is_reached for episode in episodes)
    return {
        "goals": len(episodes),
        "reached": reached,
        "share": reached / max(1, len(episodes)),
        "steps": sum(len(episode.replies) for episode in episodes),
        "oracle_steps": sum(episode.oracle_steps for episode in episodes),
        "median_seconds": median(reply.seconds for reply in replies),
        "median_first_seconds": median(reply.first_seconds for reply in replies),
    }


def _table(summary: dict[str, float]) -> str:
    return "\n".join(
        (
            f"goals reached          {summary['reached']:5.0f} of {summary['goals']:.0f}  ({summary['share']:.1%})",
            f"steps                  {summary['steps']:5.0f}  (the oracle takes {summary['oracle_steps']:.0f})",
            f"median seconds a step  {summary['median_seconds']:5.2f}",
            f"  to the first token   {summary['median_first_seconds']:5.2f}",
        )
    )


@contextmanager
def served(bundle: Path) -> Iterator[str]:
    """Serve a bundle on a free port of this machine, and give the address up to ``/v1``.

    Raises:
        SystemExit: The server has ended with this exit code, and has said why.
    """
    with child(
        [sys.executable, "-m", "edgeglm", "serve", str(bundle), "--port", "0"], stdout=subprocess.PIPE, text=True
    ) as server:
        assert server.stdout
        line = server.stdout.readline()
        if not line:
            raise SystemExit(server.wait())
        yield line.split()[-1]


@click.command()
@click.option("--url", help="Address of a server, up to /v1.")
@click.option("--bundle", type=click.Path(path_type=Path), help="Serve this bundle meanwhile, instead of --url.")
@click.option("--model", default="autoglm-phone-9b", show_default=True, help="Name that the requests give.")
@click.option("--goals", default=200, show_default=True, type=click.IntRange(min=1), help="How many.")
@click.option("--language", default="en", show_default=True, type=click.Choice(LANGUAGES), help="Of prompt and wishes.")
@click.option("--seed", default=0, show_default=True, help="Chooses the goals.")
@click.option(
    "--system", "file", type=click.Path(path_type=Path, dir_okay=False, exists=True), help="Another system prompt."
)
@click.option("--steps", is_flag=True, help="Print each answer.")
def main(  # noqa: PLR0913 (one for each option)
    url: str | None,
    bundle: Path | None,
    model: str,
    goals: int,
    language: str,
    seed: int,
    file: Path | None,
    steps: bool,
) -> None:
    """Play goals on the simulated phone against an OpenAI-compatible server."""
    if (url is None) == (bundle is None):
        raise click.UsageError("give either --url or --bundle")
    system = file.read_text(encoding="utf-8") if file else client_prompt(language, date.today())
    show: Callable[[str], None] = click.echo if steps else lambda line: None
    episodes = []
    with served(bundle) if bundle else nullcontext(url) as address:
        client = openai.OpenAI(base_url=address, api_key="EMPTY", timeout=TIMEOUT_SECONDS)
        for episode in play_goals(client, model, system, sample_goals(goals, language, seed), show):
            episodes.append(episode)
            state = "reached" if episode.is_reached else "FAILED "
            click.echo(f"{state} {len(episode.replies)} steps  {episode.wish}  {episode.why}".rstrip())
    click.echo(_table(summarize(episodes)))


if __name__ == "__main__":
    main()
