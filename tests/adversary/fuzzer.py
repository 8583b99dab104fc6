"""What every fuzzer shares: attempts within a time, outcomes counted, and any outcome that is not allowed a failure."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable, Iterator

from edgeglm.errors import EdgeglmError

# Exit codes that docs/cli.md gives to what a user can cause; 1 is a bug.
DOCUMENTED = {0, 2, 3, 4, 5, 6, 130, 141}
CONTROL = {*range(32), *range(127, 160)} - {ord("\n"), ord("\t")}


class Fuzzer:
    """A series of random attempts at one thing.

    Args:
        name: What is attacked, as the table calls it.
        seconds: How long new attempts begin; at least one is made.
        seed: Of the attempts: the same seed makes the same ones.

    Attributes:
        random: Where every attempt takes its choices from.
        outcomes: How often each outcome came.
        faults: The first attempts whose outcome is a fault, with the fault.
    """

    def __init__(self, name: str, seconds: float, seed: int) -> None:
        self.name, self.seconds, self.random = name, seconds, random.Random(f"{name}/{seed}")
        self.outcomes: Counter[str] = Counter()
        self.faults: list[str] = []

    def attempts(self) -> Iterator[int]:
        """Yield numbers until the time is over."""
        end, number = time.monotonic() + self.seconds, 0
        while not number or time.monotonic() < end:
            yield number
            number += 1

    def saw(self, outcome: str) -> None:
        """Count an outcome that is right."""
        self.outcomes[outcome] += 1

    def fault(self, attempt: object, why: object) -> None:
        """Count an outcome that is wrong, and keep what led to it."""
        self.outcomes["fault"] += 1
        if len(self.faults) < 10:
            self.faults.append(f"{str(attempt)[:300]}: {str(why)[:300]}")

    def call(self, attempt: object, function: Callable[[], object]) -> None:
        """Call what must return, or raise one of the errors that are a line for the user."""
        try:
            function()
        except EdgeglmError as error:
            line = str(error)
            if fault := line_fault(f"edgeglm: {line}\n"):
                self.fault(attempt, f"{fault}: {line!r}")
            else:
                self.saw(f"refused ({error.exit_code})")
        except Exception as error:
            self.fault(attempt, f"{type(error).__name__}: {error}")
        else:
            self.saw("taken")

    def judge(self, attempt: object, status: int, out: str, err: str, allowed: set[int]) -> None:
        """Judge a command by its exit code and streams: one line for what the user caused, never a traceback."""
        if fault := command_fault(status, out, err, allowed):
            self.fault(attempt, f"{fault}; exit {status}: {err[-200:]!r}")
        else:
            self.saw(f"exit {status}")

    @property
    def row(self) -> str:
        """The table's row."""
        outcomes = ", ".join(f"{name} {count}" for name, count in sorted(self.outcomes.items()) if name != "fault")
        return f"| {self.name} | {self.outcomes.total()} | {outcomes} | {self.outcomes['fault']} |"


def command_fault(status: int, out: str, err: str, allowed: set[int]) -> str | None:
    """Say what is wrong with how a command ended, None where nothing is."""
    if status < 0:
        return f"killed by signal {-status}"
    if "Traceback" in err + out or "internal error" in err or status not in DOCUMENTED:
        return "a bug"
    if status not in allowed:
        return f"not one of {sorted(allowed)}"
    if status in (2, 3, 5, 6):
        if out:
            return "something on stdout"
        return line_fault(err)
    return None


def line_fault(err: str) -> str | None:
    """Say what is wrong with the one line that a user error is, None where nothing is."""
    lines = [line for line in err.splitlines() if line.startswith("edgeglm: ")]
    if len(lines) != 1 or err.count("\n") > err.count("\nnote") + err.startswith("note") + 1:
        return "not one line"
    if len(lines[0]) > 4096:
        return "too long a line"
    if CONTROL & set(map(ord, err)):
        return "control characters"
    return None if "; " in lines[0] else "no remedy"
