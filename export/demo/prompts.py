"""Made-up system prompts of Open-AutoGLM's structure: a date, a role, the form of an answer, actions and rules.

The pieces are in ``data/prompts``, in English and Chinese. Those under ``held_out`` make the one prompt of a language
that `client_prompt` returns, which no training sees.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import date, timedelta
from functools import cache
from pathlib import Path
from random import Random

import msgspec

LANGUAGES = ("en", "cn")
FOLDER = Path(__file__).parent / "data/prompts"
FORMS = {
    "Launch": 'do(action="Launch", app="xxx")',
    "Tap": 'do(action="Tap", element=[x,y])',
    "Double Tap": 'do(action="Double Tap", element=[x,y])',
    "Long Press": 'do(action="Long Press", element=[x,y])',
    "Swipe": 'do(action="Swipe", start=[x1,y1], end=[x2,y2])',
    "Type": 'do(action="Type", text="xxx")',
    "Type_Name": 'do(action="Type_Name", text="xxx")',
    "Interact": 'do(action="Interact")',
    "Note": 'do(action="Note", message="True")',
    "Call_API": 'do(action="Call_API", instruction="xxx")',
    "Back": 'do(action="Back")',
    "Home": 'do(action="Home")',
    "Wait": 'do(action="Wait", duration="x seconds")',
    "Take_over": 'do(action="Take_over", message="xxx")',
    "finish": 'finish(message="xxx")',
}
LAYOUTS = (
    "- {form}\n    {text}",
    "- **{name}**\n  {text}\n  **Example**:\n  <answer>\n  {form}\n  </answer>",
    "{form}: {text}",
)
# The layout of Open-AutoGLM's own prompts.
CLIENT_LAYOUTS = {"en": LAYOUTS[1], "cn": LAYOUTS[0]}
NUMBERED, DASHED = "{number}. {text}", "- {text}"
WEEKDAYS = "一二三四五六日"


class Pieces(msgspec.Struct, forbid_unknown_fields=True):
    """Wordings of the parts of a prompt."""

    dates: list[str]
    headings: list[str]
    roles: list[str]
    formats: list[str]
    listings: list[str]
    rulings: list[str]
    rules: list[str]
    actions: dict[str, list[str]]


class _File(Pieces):
    held_out: Pieces


@cache
def read_pieces(language: str) -> tuple[Pieces, Pieces]:
    """Return the wordings of a language for training, and those that are held out."""
    file = msgspec.toml.decode((FOLDER / f"{language}.toml").read_bytes(), type=_File)
    return file, file.held_out


def texts(pieces: Pieces) -> Iterator[str]:
    """Yield each wording."""
    yield from (*pieces.dates, *pieces.headings, *pieces.roles, *pieces.formats)
    yield from (*pieces.listings, *pieces.rulings, *pieces.rules)
    for wordings in pieces.actions.values():
        yield from wordings


def sample_prompt(random: Random, language: str, share: float = 1.0) -> str:
    """Return a prompt for training with a share of the actions and of the rules, in any order and layout.

    Args:
        random: Chooses pieces, wordings and order.
        language: "en" or "cn".
        share: Of the pieces, 0 to 1. Above 1, up to 2, they are written again in other words: the client's prompt in
            Chinese is longer than all pieces.
    """
    pieces, _ = read_pieces(language)
    day = date(2024, 1, 1) + timedelta(days=random.randrange(1500))
    shares = [min(share, 1.0), share - 1] if share > 1 else [share]
    parts = [part for written in shares for part in _sample_parts(random, pieces, written)]
    if random.random() < 0.3:
        random.shuffle(parts)
    opening = [random.choice(pieces.headings), random.choice(pieces.roles)]
    opening.insert(random.random() < 0.1, random.choice(pieces.dates).replace("{date}", write_day(day, language)))
    return "\n".join(part for part in ["\n".join(filter(None, opening)), *parts] if part)


def _sample_parts(random: Random, pieces: Pieces, share: float) -> list[str]:
    """Return the form of an answer, some of the actions and some of the rules."""
    actions = random.sample(list(pieces.actions), round(share * len(pieces.actions)))
    rules = random.sample(pieces.rules, round(share * len(pieces.rules)))
    layout, bullet = random.choice(LAYOUTS), random.choice((NUMBERED, DASHED))
    return [
        random.choice(pieces.formats),
        _listing(random.choice(pieces.listings), pieces, actions, layout, random),
        _ruling(random.choice(pieces.rulings), rules, bullet),
    ]


def client_prompt(language: str, day: date) -> str:
    """Return the one held-out prompt of a language, of the length and the layout of Open-AutoGLM's own."""
    _, pieces = read_pieces(language)
    random = Random(0)  # each wording has one choice
    parts = [
        pieces.dates[0].replace("{date}", write_day(day, language)),
        *pieces.headings,
        *pieces.roles,
        *pieces.formats,
        _listing(pieces.listings[0], pieces, list(pieces.actions), CLIENT_LAYOUTS[language], random),
        _ruling(pieces.rulings[0], pieces.rules, NUMBERED if language == "cn" else DASHED),
    ]
    return "\n".join(parts)


def write_day(day: date, language: str) -> str:
    """Return a day as Open-AutoGLM writes it."""
    if language == "cn":
        return f"{day:%Y年%m月%d日} 星期{WEEKDAYS[day.weekday()]}"
    return f"{day:%Y-%m-%d, %A}"


def _listing(heading: str, pieces: Pieces, actions: Sequence[str], layout: str, random: Random) -> str:
    lines = [layout.format(name=name, form=FORMS[name], text=random.choice(pieces.actions[name])) for name in actions]
    return "\n".join([heading, *lines]) if lines else ""


def _ruling(heading: str, rules: Sequence[str], bullet: str) -> str:
    lines = [bullet.format(number=number, text=text) for number, text in enumerate(rules, start=1)]
    return "\n".join([heading, *lines]) if lines else ""
