"""The test itself: the bundle's self-test on the device, and the same prompts to the shipped runner here and there."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from edgeglm.actions import parse_action
from edgeglm.bundle import Bundle
from edgeglm.engines import ENGINES
from edgeglm.errors import AccuracyError, BudgetError, EdgeglmError, UnsupportedError
from edgeglm.export.burn.device import BUNDLE, SCREENS, Device
from edgeglm.export.evaluate.tasks.success import hits
from edgeglm.export.quantize.schemes import SCHEMES, Fp32
from edgeglm.export.samples.screenshots import Expected, read_samples
from edgeglm.export.samples.shipped import DEMO_DATA
from edgeglm.manifest import MANIFEST
from edgeglm.process import Ran, run_program
from edgeglm.runtimes.core.self_test import FILE, are_alike
from edgeglm.units import format_size

RUNNER = "run.pyz"
HERE = "this machine"
PREFIX = re.compile(rf"edgeglm: (?:{re.escape(RUNNER)}: )?(?P<why>.*)")
# How Python, C++, the C library, the loader and OpenBLAS say that an address space is full.
NO_MEMORY = re.compile(
    r"MemoryError|bad_alloc|[Cc]annot allocate memory|failed to map segment|[Ff]ailed to allocate memory|out of memory"
    r"|memory: is not enough|Memory allocation still failed|pthread_create failed"
)
KILLED = (-9, 137)  # by the kernel, when memory is short
# Processors add in different orders. Where activations are quantized, the last bit of a float can decide a rounding,
# and a tap moves by a few thousandths of the screen.
NEAR = 20


@dataclass(frozen=True)
class Question:
    """A prompt, with a picture for a model that sees, and the right answer to both."""

    prompt: str
    picture: Path | None
    expected: Expected


class _Phase(Struct):
    """What is used of a phase of an answer."""

    name: str
    ms: float


class _Answer(Struct):
    """What is used of an answer of the runner."""

    action: dict[str, str | int | float | bool | list[int | float] | None] | None
    text: str
    time_to_first_token_ms: float
    decode_tokens_per_second: float
    peak_rss_bytes: int
    phases: list[_Phase]


class _Verdict(Struct):
    """What is used of a self-test."""

    passed: bool
    agreement: float
    int8_kernels: str
    peak_rss_bytes: int


@dataclass(frozen=True)
class Reply:
    """The output of the runner with ``--json``."""

    result: dict[str, Any]

    @property
    def said(self) -> object:
        """The action, or the text where there is none in it."""
        return self.result["action"] or self.result["text"]


@dataclass(frozen=True)
class Pair:
    """A question, answered twice; `exact` where the bundle computes in fp32 alone."""

    question: Question
    here: Reply
    there: Reply
    exact: bool

    @property
    def same(self) -> bool:
        """Whether the device answered as this machine did."""
        return self.here.said == self.there.said

    @property
    def alike(self) -> bool:
        """Whether the answers are the same, or taps that may differ: in the target there, or within `NEAR` of here."""
        here, there = (parse_action(reply.result["text"]) for reply in (self.here, self.there))
        if self.same or self.exact or here is None:
            return self.same
        right = self.question.picture is not None and hits(self.question.expected, self.there.result["text"])
        return are_alike(here, there, inf if right else NEAR)


def questions(bundle: Bundle, limit: int) -> list[Question]:
    """Return the first held-out screens of the demo with their instructions; no pictures for a text model."""
    sees = bundle.manifest.model.vision is not None
    samples = list(read_samples(DEMO_DATA.evaluation, limit))
    return [
        Question(sample.prompt, sample.screen if sees and isinstance(sample.screen, Path) else None, sample.expected)
        for sample in samples
    ]


def files(bundle: Bundle, asked: Sequence[Question]) -> list[tuple[Path, str]]:
    """Return what goes to the device: of the bundle what the manifest names, and the pictures."""
    names = [MANIFEST, *bundle.manifest.files]
    pictures = [question.picture for question in asked if question.picture]
    return [
        *((bundle.folder / name, f"{BUNDLE}/{name}") for name in names),
        *((picture, f"{SCREENS}/{picture.name}") for picture in pictures),
    ]


def check_runner(device: Device) -> None:
    """Check that the runner starts there. Raises UnsupportedError with what is missing."""
    ran = device.python([f"{BUNDLE}/{RUNNER}", "--help"])
    if ran.code:
        raise _failure(device, ran, None)


def ask(device: Device, bundle: Bundle, asked: Sequence[Question], memory: int) -> Iterator[Pair]:
    """Yield each question with both answers.

    Args:
        device: With the files on it.
        bundle: The same, here.
        asked: The questions.
        memory: What the runner may take there, in bytes: its budget, and its address space unless a GPU's driver
            reserves more of that than there is memory.

    Raises:
        BudgetError: It is not enough.
        UnsupportedError: The runner does not work there.
    """
    exact = is_exact(bundle)
    for question in asked:
        here = _here(bundle, question)
        yield Pair(question, here, Reply(ask_there(device, bundle, question, memory)), exact)


def ask_there(device: Device, bundle: Bundle, question: Question, memory: int) -> dict[str, Any]:
    """Return what the runner prints there for a question, with ``--json``. Takes and raises what `ask` does."""
    picture = f"{SCREENS}/{question.picture.name}" if question.picture else None
    return _run(device, bundle, _arguments(question, picture), memory, _Answer)


def is_exact(bundle: Bundle) -> bool:
    """Return whether every module that an engine runs has all its parts in fp32."""
    computed = [module for module in bundle.manifest.modules if module.engine]
    precisions = {name for module in computed for name in module.parts.values() or [module.precision]}
    return all(isinstance(SCHEMES.get(name), Fp32) for name in precisions)


def prove(device: Device, bundle: Bundle, memory: int) -> dict[str, Any] | None:
    """Return what ``run.pyz --self-test --json`` prints there; None where the bundle carries no self-test.

    Raises what `ask` does.

    Args:
        device: Entered.
        bundle: Already on the device.
        memory: Bytes that the runner may take there.
    """
    if FILE not in bundle.manifest.files:
        return None
    return _run(device, bundle, ["--self-test", "--json"], memory, _Verdict, AccuracyError.exit_code)


def _run(
    device: Device, bundle: Bundle, arguments: Sequence[str], memory: int, kind: type[Struct], allowed: int = 0
) -> dict[str, Any]:
    """Return the object that the runner prints there, if it ends with 0 or the `allowed` exit code."""
    engines = [ENGINES[module.engine] for module in bundle.manifest.modules if module.engine]
    unlimited = any(engine.maps_device_memory for engine in engines)
    command = [f"{BUNDLE}/{RUNNER}", *arguments, "--max-ram", str(memory)]
    ran = device.python(command, None if unlimited else memory)
    if ran.code not in (0, allowed):
        raise _failure(device, ran, memory)
    return _printed(device.title, ran.out, kind)


def _here(bundle: Bundle, question: Question) -> Reply:
    command = [sys.executable, str(bundle.folder / RUNNER), *_arguments(question, question.picture)]
    ran = run_program(command)
    if ran.code:
        why, remedy = _told(ran)
        raise UnsupportedError(HERE, why, remedy)
    return Reply(_printed(HERE, ran.out, _Answer))


def _printed(where: str, text: str, kind: type[Struct]) -> dict[str, Any]:
    """Return the object that a runner printed. Raises UnsupportedError where it printed something else."""
    try:
        result: dict[str, Any] = json.loads(text)
        msgspec.convert(result, kind)
    except (ValueError, RecursionError) as error:  # msgspec's own are of the first
        why = f"the runner printed no result but {text[:80]!r}"
        raise UnsupportedError(where, why, f"run python3 {RUNNER} there by hand") from error
    return result


def _arguments(question: Question, picture: object) -> list[str]:
    image = ["--image", str(picture)] if picture else []
    return ["--prompt", question.prompt, *image, "--temperature", "0", "--json"]


def _failure(device: Device, ran: Ran, memory: int | None) -> EdgeglmError:
    why, remedy = _told(ran)
    if memory and (ran.code in KILLED or NO_MEMORY.search(ran.err)):
        why = f"{format_size(memory)} of memory are too little there: {why}"
        return BudgetError(device.title, why, "export a smaller bundle: edgeglm plan says what fits")
    if ran.code == BudgetError.exit_code:
        return BudgetError(device.title, why, remedy)
    return UnsupportedError(device.title, why, remedy)


def _told(ran: Ran) -> tuple[str, str]:
    """Return why the runner failed, and its remedy, in its own words where it has some."""
    lines = [line.strip() for line in ran.err.splitlines() if line.strip()]
    for line in reversed(lines):
        if told := PREFIX.fullmatch(line):
            why, _, remedy = told["why"].rpartition("; ")
            return (why, remedy) if why else (remedy, "see there")
    end = f"the runner ended with exit code {ran.code}"
    return f"{end}: {lines[-1]}" if lines else end, f"run python3 {RUNNER} there by hand"
