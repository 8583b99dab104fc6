"""The remedy for a name that does not exist."""

from __future__ import annotations

from collections.abc import Iterable


def nearest_name(name: str, choices: Iterable[str]) -> str:
    """Return the remedy clause for an unknown name: the nearest choice, or all of them when none is near."""
    import difflib  # noqa: PLC0415 (a command without an error need not wait for it)

    names = sorted(choices)
    close = difflib.get_close_matches(name, names, n=1)
    return f"did you mean {close[0]}?" if close else f"choose one of {', '.join(names)}"
