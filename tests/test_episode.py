"""The episodes of `benchmarks/episode.py`: the client's message form, given answers, and bars that can be missed."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from benchmarks.episode_bars import bars
from benchmarks.episode_models import demo_episodes, scripted_episodes
from benchmarks.episode_text import EPISODES, answer
from benchmarks.episode_worker import shared_length
from benchmarks.worker_process import Contender, WorkerProcess
from edgeglm.actions import parse_action, write_action
from tests.runtimes.demo import demo_bundle


@pytest.mark.parametrize(("task", "steps"), EPISODES)
def test_each_answer_is_an_action_as_the_client_writes_it(task: str, steps: list[tuple[str, str, str]]) -> None:
    assert task
    assert len(steps) == 10
    for _, thought, action in steps:
        read = parse_action(answer(thought, action))
        assert read
        assert write_action(read) == action


@pytest.mark.slow
def test_prompts_share_all_but_the_last_message_and_bundles_are_fed_the_answers(tmp_path: Path) -> None:
    bundle = demo_bundle(tmp_path / "bundle", "cpu", "int8")
    (first, second, *_), (other, *_) = scripted_episodes(bundle)
    shared = shared_length(first["prompt"], second["prompt"])
    assert 2500 < shared < len(first["prompt"]) < len(second["prompt"])
    assert 2500 < shared_length(first["prompt"], other["prompt"]) < 2600  # no piece of a picture
    assert 45 < len(first["answer"]) < 100
    file = tmp_path / "episodes.json"
    file.write_text(json.dumps([[first, second]]))
    with WorkerProcess(Contender(sys.executable, "edgeglm", bundle, file), 1) as worker:
        figures = [worker.ask("step", 0, at) for at in (0, 1)]
        assert worker.ask("peak")["peak"] > 0
    assert [step["tokens"] for step in figures] == [len(first["answer"]), len(second["answer"])]
    assert [step["prefilled"] for step in figures] == [len(first["prompt"]), len(second["prompt"]) - shared]
    assert all(0 < step["passes"] <= step["tokens"] for step in figures)


def test_a_bar_is_met_or_missed() -> None:
    figures = {
        "edgeglm int8": {"warm": 4.0, "start": 4.0, "passes": 0.5},
        "edgeglm int4": {"warm": 5.0, "start": 3.0, "passes": 0.4},
        "llama.cpp Q4_0": {"warm": 10.0, "start": 10.0},
    }
    verdicts = [line.split()[-1] for line in bars(figures, has_vnni=False)]
    assert verdicts == ["met", "MISSED", "MISSED"]  # all of them INT8's, whose warm episode is the better


def test_the_demo_is_asked_about_screens_that_differ() -> None:
    screens = {json.dumps(step) for episode in demo_episodes() for step in episode}
    assert len(screens) == 60
