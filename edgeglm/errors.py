"""Errors that a user can cause, and the exit code of each.

    EdgeglmError
    ├── UsageError         2   a wrong option, path, value or input file
    ├── UnsupportedError   3   a model, operator or device combination we cannot serve
    ├── AccuracyError      4   the accuracy gate failed
    ├── BudgetError        5   does not fit the memory or disk budget
    └── DamagedFileError   6   a file that is truncated, inconsistent or tampered with

Exit code 0 is success, 1 a bug of ours (a traceback), 130 an interrupt, 143 a SIGTERM.
"""

from __future__ import annotations

from collections.abc import Sequence

# Of what is at fault, why, and what to do, each.
MAX_LENGTH = 1000


def printable(text: str) -> str:
    """Escape what a terminal would obey or could not show: control characters, surrogates."""
    if text.isprintable():
        return text
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode() for character in text
    )


class EdgeglmError(Exception):
    """A failure the user can act on, printed as one line ``WHAT: WHY; REMEDY`` without control characters.

    Args:
        what: The file, option or model at fault, by its name.
        why: The reason, in a clause.
        remedy: What to do about it, in a clause.
        more: Further failures of the same kind, each of which is a line of its own behind it.
    """

    exit_code = 1

    def __init__(self, what: object, why: str, remedy: str, more: Sequence[EdgeglmError] = ()) -> None:
        self.what = str(what)
        self.why = why
        self.remedy = remedy
        self.more = tuple(more)
        super().__init__("{}: {}; {}".format(*map(_plain, (self.what, why, remedy))))


def _plain(text: str) -> str:
    """Return a text on one line, without its middle where it is too long for one: a file may hold anything."""
    line, half = printable(" ".join(text.split())), MAX_LENGTH // 2
    return line if len(line) <= MAX_LENGTH else f"{line[:half]} … {line[-half:]}"


class UsageError(EdgeglmError):
    """A wrong option, path, value or input file."""

    exit_code = 2


class UnsupportedError(EdgeglmError):
    """A model, operator or device combination that edgeglm cannot serve."""

    exit_code = 3


class AccuracyError(EdgeglmError):
    """An artifact lost more accuracy than the user allowed."""

    exit_code = 4


class BudgetError(EdgeglmError):
    """Work that does not fit the stated memory or disk budget."""

    exit_code = 5


class DamagedFileError(EdgeglmError):
    """A file that is truncated, inconsistent or tampered with."""

    exit_code = 6
