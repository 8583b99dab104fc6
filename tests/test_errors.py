"""The exception tree and the one line that each exception prints."""

from __future__ import annotations

import pytest

from edgeglm import errors


@pytest.mark.parametrize(
    ("error", "exit_code"),
    [
        (errors.UsageError, 2),
        (errors.UnsupportedError, 3),
        (errors.AccuracyError, 4),
        (errors.BudgetError, 5),
        (errors.DamagedFileError, 6),
    ],
)
def test_each_error_has_its_documented_exit_code(error: type[errors.EdgeglmError], exit_code: int) -> None:
    assert error.exit_code == exit_code
    assert issubclass(error, errors.EdgeglmError)


def test_no_two_errors_share_an_exit_code() -> None:
    tree = errors.EdgeglmError.__subclasses__()
    assert len({error.exit_code for error in tree}) == len(tree)


def test_the_message_is_one_line_of_what_why_and_remedy() -> None:
    error = errors.UsageError("a.toml", "has a\nwrong  key", "write `name`")
    assert str(error) == "a.toml: has a wrong key; write `name`"
    assert (error.what, error.why, error.remedy) == ("a.toml", "has a\nwrong  key", "write `name`")


def test_what_a_terminal_would_obey_or_cannot_show_is_escaped() -> None:
    error = errors.DamagedFileError("a\x1b]0;pwned\x07b", "holds \x9b2J, \u202e and \udcff", "点一下")
    assert str(error) == r"a\x1b]0;pwned\x07b: holds \x9b2J, \u202e and \udcff; 点一下"


def test_what_a_file_holds_makes_no_line_of_any_length() -> None:
    error = errors.DamagedFileError("m.json", f"{'a' * 5000}' is not b", "copy it")
    assert len(str(error)) < 1100
    assert str(error).startswith("m.json: aaa")
    assert str(error).endswith("aaa' is not b; copy it")
