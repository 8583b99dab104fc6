"""The proof that travels with a bundle: prompts with the original's answers, asked again where the bundle runs.

``assets/self-test.json`` holds a few probes. The device is led along each probe's tokens, and says before each which
one it finds the likeliest; the original's likeliest ones stand beside them. See docs/decisions/0013-self-test.md.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import hypot
from typing import Annotated, Final, Literal

import msgspec
import numpy as np
from msgspec import Meta, Struct
from numpy.typing import NDArray

from edgeglm.actions import Action, Value, parse_action
from edgeglm.bundle import Bundle
from edgeglm.damage import RESTORE
from edgeglm.errors import AccuracyError, DamagedFileError, UnsupportedError
from edgeglm.machine import describe_kernels, read_machine
from edgeglm.runtimes.core.answer import Answer
from edgeglm.runtimes.core.runner import Runner
from edgeglm.runtimes.core.sampling import Allowing, Sampler, Sampling
from edgeglm.runtimes.text.messages import message
from edgeglm.units import format_size

SCHEMA: Final = 1
FILE = "assets/self-test.json"
MAX_BYTES = 1 << 20
# Of a text in characters, and of an answer.
MAX_TEXT, MAX_TOKENS = 1 << 14, 512
# Of the tokens that the original is sure of, the share that must be the device's likeliest too.
LEAST = 0.9
# Points of an action are alike within so many thousandths of the screen.
NEAR = 50
SHOWN = 40

Token = Annotated[int, Meta(ge=0, lt=2**31)]
Tokens = Annotated[tuple[Token, ...], Meta(min_length=1, max_length=MAX_TOKENS)]
Role = Annotated[str, Meta(pattern="^(system|user|assistant)$")]
Text = Annotated[str, Meta(max_length=MAX_TEXT)]


class Probe(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A prompt, tokens behind it, and for each what the original found the likeliest before it, and whether surely.

    Where the likeliest are the tokens themselves up to an end token, they are the original's own greedy answer.
    ``image`` is the picture's path in the bundle. ``before`` are role and text of the messages before the prompt.
    """

    prompt: Text
    tokens: Tokens
    likeliest: Tokens
    sure: tuple[bool, ...]
    image: str | None = None
    before: tuple[tuple[Role, Text], ...] = ()


class SelfTest(Struct, frozen=True, forbid_unknown_fields=True):
    """The content of ``assets/self-test.json``."""

    probes: Annotated[tuple[Probe, ...], Meta(min_length=1, max_length=64)]
    self_test_schema: Literal[1] = SCHEMA

    def to_bytes(self) -> bytes:
        """Return the file's bytes, the same for the same content."""
        return msgspec.json.encode(self, order="sorted") + b"\n"


@dataclass(frozen=True)
class Outcome:
    """A probe and what the device made of it: how many of the `sure` tokens it `agreed` to, and both answers.

    ``original`` and ``here`` are texts; where the original's has an action, it is the actions that must be alike.
    """

    probe: Probe
    sure: int
    agreed: int
    original: str
    here: str
    same: bool
    passed: bool


@dataclass(frozen=True)
class Verdict:
    """The outcomes of a self-test, and the engines that ran it."""

    outcomes: tuple[Outcome, ...]
    engines: dict[str, str]
    int8_kernels: str
    peak_rss_bytes: int

    @property
    def agreement(self) -> float:
        """The share of the sure tokens that are the device's too; 1 where the original is sure of none."""
        sure = sum(outcome.sure for outcome in self.outcomes)
        return sum(outcome.agreed for outcome in self.outcomes) / sure if sure else 1.0

    @property
    def passed(self) -> bool:
        """Whether the device answers as the original does."""
        return self.agreement >= LEAST and all(outcome.passed for outcome in self.outcomes)


class Led(Sampler):
    """Leads an answer along given tokens, and keeps what the model finds the likeliest before each."""

    def __init__(self, tokens: Sequence[int]) -> None:
        super().__init__(Sampling())
        self.tokens, self.likeliest = tokens, list[int]()

    def choose(self, logits: NDArray[np.float32], seen: Sequence[int], guide: Allowing | None = None) -> int:
        """Return the next of the tokens."""
        self.likeliest.append(int(logits.argmax()))
        return self.tokens[len(self.likeliest) - 1]


def read_self_test(bundle: Bundle) -> SelfTest:
    """Read a bundle's probes.

    Raises:
        UnsupportedError: The bundle has none.
        DamagedFileError: They are not what an export wrote.
    """
    if FILE not in bundle.manifest.files:
        raise UnsupportedError(bundle.folder, "carries no self-test", "export it again with a newer edgeglm")
    path, vocabulary = bundle.path(FILE), bundle.manifest.model.vocabulary
    if bundle.manifest.files[FILE].bytes > MAX_BYTES:
        raise DamagedFileError(path, "is longer than a self-test can be", RESTORE)
    try:
        test = msgspec.json.decode(path.read_bytes(), type=SelfTest)
    except msgspec.DecodeError as error:
        raise DamagedFileError(path, f"is not a self-test: {error}", RESTORE) from error
    for probe in test.probes:
        if not len(probe.tokens) == len(probe.likeliest) == len(probe.sure):
            raise DamagedFileError(path, "has a probe whose lists differ in length", RESTORE)
        if max(*probe.tokens, *probe.likeliest) >= vocabulary:
            raise DamagedFileError(path, f"has a token beyond the vocabulary of {vocabulary}", RESTORE)
        if probe.image is not None and probe.image not in bundle.manifest.files:
            raise DamagedFileError(path, "has an image that the bundle lacks", RESTORE)
    return test


def run_self_test(runner: Runner) -> Verdict:
    """Ask a runner all of its bundle's probes. Raises as `read_self_test` and `Runner.answer`."""
    test, answers, outcomes = read_self_test(runner.bundle), list[Answer](), list[Outcome]()
    for probe in test.probes:
        led = Led(probe.tokens)
        answers.append(_ask(runner, probe, led, len(probe.tokens)))
        outcomes.append(_judge(runner, probe, led.likeliest, answers))
    return Verdict(
        tuple(outcomes),
        {module.name: module.engine for answer in answers for module in answer.modules},
        read_machine().int8_kernels,
        max(answer.peak_rss_bytes for answer in answers),
    )


def _ask(runner: Runner, probe: Probe, sampler: Sampler, limit: int) -> Answer:
    image = runner.bundle.path(probe.image) if probe.image else None
    messages = [*(message(role, text) for role, text in probe.before), message("user", probe.prompt, image)]
    return runner.answer(messages, max_new_tokens=limit, sampling=sampler, grammar="off")


def _judge(runner: Runner, probe: Probe, likeliest: Sequence[int], answers: list[Answer]) -> Outcome:
    """Compare tokens, and the actions of whole answers; an answer that went another way is generated to its end."""
    own = list(zip(likeliest, probe.likeliest, probe.sure, strict=False))
    same = len(own) == len(probe.tokens) and all(here == there for here, there, _ in own)
    sure = [here == there for here, there, surely in own if surely]
    original = here = answers[-1].text
    whole = probe.tokens == probe.likeliest and probe.tokens[-1] in runner.bundle.manifest.generation.eos_token_ids
    action = parse_action(original) if whole else None
    passed = True
    if not same:
        answers.append(_ask(runner, probe, Sampler(Sampling()), 2 * len(probe.tokens)))
        here = answers[-1].text
        passed = action is None or are_alike(action, answers[-1].action)
    return Outcome(probe, len(sure), sum(sure), original, here, same, passed)


def are_alike(one: Action, other: Action | None, near: float = NEAR) -> bool:
    """Return whether two actions are of one type, with points near one another and all else equal.

    Args:
        one: An action.
        other: Another one, or none.
        near: The largest distance of two points, in thousandths of the screen.
    """
    if other is None or one.type != other.type or one.arguments.keys() != other.arguments.keys():
        return False
    return all(_are_near(value, other.arguments[name], near) for name, value in one.arguments.items())


def _are_near(one: Value, other: Value, near: float) -> bool:
    if isinstance(one, tuple) and isinstance(other, tuple):
        return hypot(one[0] - other[0], one[1] - other[1]) <= near
    return one == other


def summarize(bundle: Bundle, verdict: Verdict) -> dict[str, object]:
    """Return what ``--json`` prints, as docs/cli.md says."""
    return {
        "bundle": str(bundle.folder),
        "passed": verdict.passed,
        "agreement": round(verdict.agreement, 4),
        "least_agreement": LEAST,
        "probes": [
            {
                "prompt": outcome.probe.prompt,
                "image": outcome.probe.image,
                "sure_tokens": outcome.sure,
                "agreed_tokens": outcome.agreed,
                "original": outcome.original,
                "here": outcome.here,
                "same": outcome.same,
                "passed": outcome.passed,
            }
            for outcome in verdict.outcomes
        ],
        "engines": verdict.engines,
        "int8_kernels": verdict.int8_kernels,
        "peak_rss_bytes": verdict.peak_rss_bytes,
    }


def describe(verdict: Verdict) -> Iterator[str]:
    """Yield the lines of the report."""
    width = max(len("PROMPT"), *(len(_brief(outcome.probe.prompt)) for outcome in verdict.outcomes))
    yield f"{'PROMPT':<{width}}  SURE TOKENS  ANSWER"
    for outcome in verdict.outcomes:
        word = "the original's" if outcome.same else "alike" if outcome.passed else "ANOTHER"
        yield f"{_brief(outcome.probe.prompt):<{width}}  {f'{outcome.agreed} of {outcome.sure}':<11}  {word}"
    yield ""
    yield "engines  " + ", ".join(f"{name} on {engine}" for name, engine in verdict.engines.items())
    yield f"int8     {describe_kernels(verdict.int8_kernels)}"
    yield f"memory   peak RSS {format_size(verdict.peak_rss_bytes)}"
    yield f"tokens   {verdict.agreement:.1%} of the sure ones are the original's; {LEAST:.0%} are needed"
    yield f"verdict  {'passed' if verdict.passed else 'FAILED'}"


def _brief(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= SHOWN else f"{line[: SHOWN - 1]}…"


def check(bundle: Bundle, verdict: Verdict) -> None:
    """Raise AccuracyError where the device does not answer as the original does."""
    if verdict.passed:
        return
    wrong = sum(not outcome.passed for outcome in verdict.outcomes)
    why = (
        f"{wrong} of {len(verdict.outcomes)} answers are not the original's, {verdict.agreement:.1%} of its sure tokens"
    )
    raise AccuracyError(bundle.folder, f"its self-test failed here: {why}", "run edgeglm validate, or another engine")
