"""The time of an answer and the memory of a bundle on a board, by the shipped runner."""

from __future__ import annotations

from pathlib import Path
from statistics import median
from typing import Any

from edgeglm.bundle import load_bundle
from edgeglm.export.burn.answers import ask_there, check_runner, files, questions
from edgeglm.export.burn.ways import open_board
from edgeglm.export.evaluate.speed import ANSWER

QUESTIONS = 3  # each is asked by a process of its own
# What a process does once, before its first answer.
ONCE = ("start", "load", "release")


def check_board(via: str, python: str) -> None:
    """Check that the board can be reached, and has a Python.

    Raises:
        UsageError, UnsupportedError: As `open_board`, and as the device's methods.
    """
    with open_board(via, python) as device:
        device.python(["-c", ""])


def measure_there(via: str, python: str, folder: Path) -> dict[str, float]:
    """Return ``latency``, milliseconds of a question and an answer once loaded, and ``memory``, the peak in bytes.

    Args:
        via: ``ssh HOST`` or ``adb``.
        python: Python's command there.
        folder: Of the bundle.

    Raises:
        BudgetError: The board has not enough memory or room.
        UnsupportedError: The runner does not work there.
    """
    bundle = load_bundle(folder)
    asked, memory = questions(bundle, QUESTIONS), int(bundle.manifest.profile.memory.usable.value)
    with open_board(via, python) as device:
        device.push(files(bundle, asked))
        check_runner(device)
        answers = [ask_there(device, bundle, question, memory) for question in asked]
    return {
        "latency": median(map(_latency, answers)),
        "memory": float(max(answer["peak_rss_bytes"] for answer in answers)),
    }


def _latency(answer: dict[str, Any]) -> float:
    before = [phase for phase in answer["phases"] if phase["name"].split()[0] not in (*ONCE, "decode")]
    return sum(float(phase["ms"]) for phase in before) + (ANSWER - 1) * 1e3 / float(answer["decode_tokens_per_second"])
