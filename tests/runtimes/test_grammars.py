"""Grammars that users and clients give: what would end the process, or give another answer, is one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress

import msgspec
import pytest

pytest.importorskip("llguidance")

from edgeglm.errors import UsageError
from edgeglm.manifest import Generation
from edgeglm.runtimes.core.grammars import Grammars, GrammarText
from edgeglm.runtimes.text.chat import Chat
from edgeglm.runtimes.text.sidecars import Sidecars
from tests.bundles import sample_manifest
from tests.runtimes.test_grammar import DEMO, ENDS, SIZE, TOKENIZER

CHAIN = 2000  # links, for which a stack of 8 MiB has no room


@pytest.fixture(scope="module")
def grammars() -> Grammars:
    manifest = sample_manifest()
    model, generation = msgspec.structs.replace(manifest.model, vocabulary=SIZE), Generation(eos_token_ids=ENDS)
    manifest = msgspec.structs.replace(manifest, model=model, generation=generation)
    folder = DEMO / "checkpoint"
    sidecars = Sidecars(folder, frozenset(path.name for path in folder.iterdir()))
    return Grammars(manifest, Chat(sidecars, None))


def links(link: Callable[[object], object]) -> str:
    made = {f"{number}": link({"$ref": f"#/$defs/{number + 1}"}) for number in range(CHAIN)}
    return json.dumps({"$defs": {**made, f"{CHAIN}": {"const": 1}}, "$ref": "#/$defs/0"})


@pytest.mark.parametrize(
    "link",
    [
        lambda following: {"anyOf": [following, {"const": 2}]},
        lambda following: {"allOf": [following]},
        lambda following: {"items": following, "minItems": 1},
        lambda following: {"properties": {"a": following}, "required": ["a"]},
    ],
)
def test_a_long_chain_of_references_is_followed_or_a_line(grammars: Grammars, link: Callable[[object], object]) -> None:
    with suppress(UsageError):
        found = grammars.find(GrammarText("response_format", links(link), is_schema=True))
        assert found is not None
        assert found.begin() is not None


@pytest.mark.parametrize("name", ["a", "A"])  # a rule, and a terminal
def test_a_long_chain_of_rules_is_followed(grammars: Grammars, name: str) -> None:
    rules = "\n".join(f"{name}{number}: {name}{number + 1}" for number in range(10 * CHAIN))
    text = f'start: {name}0\n{rules}\n{name}{10 * CHAIN}: "do"'
    found = grammars.find(GrammarText("--grammar x.lark", text, is_schema=False))
    assert found is not None
    guide = found.begin()
    assert guide is not None
    assert TOKENIZER.library.decode(guide.forced()) == "do"


def test_numbers_that_cannot_be_followed_are_a_line(grammars: Grammars) -> None:
    low = '{"type":"integer","minimum":-1e301,"maximum":-1e300}'
    for text, is_schema in ((low, True), (f"start: %json {low}", False), ('{"const":9007199254740993}', True)):
        with pytest.raises(UsageError, match=r"is no grammar: .*bits"):
            grammars.find(GrammarText("response_format", text, is_schema))


def test_a_dead_end_is_said_in_words(grammars: Grammars) -> None:
    with pytest.raises(UsageError, match="allows no answer: no token may come next"):
        grammars.find(GrammarText("--grammar x.lark", "start: start", is_schema=False))
    found = grammars.find(GrammarText("--grammar x.lark", 'start: "do" A\nA: /a/ & /b/', is_schema=False))
    assert found is not None
    guide = found.begin()
    assert guide is not None
    for token in guide.forced():
        guide.accept(token)
    assert guide.allowed() is None
    assert guide.lost == "no token may come next"
