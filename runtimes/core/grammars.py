"""Choose the grammar of an answer: the bundle's own, the user's, or none."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final, Literal

from edgeglm.errors import UnsupportedError, UsageError
from edgeglm.manifest import PHONE_AGENT, Manifest
from edgeglm.runtimes.core.deep_stack import call_deep
from edgeglm.runtimes.core.grammar import Grammar, GrammarError, Guide, Vocabulary, installed, schema_source
from edgeglm.runtimes.core.schema_numbers import SchemaNumberError, check_numbers
from edgeglm.runtimes.text.action_grammar import action_grammar
from edgeglm.runtimes.text.chat import Chat

LARK, SCHEMA = ".lark", ".json"
MAX_BYTES = 1 << 20
# Of compiled grammars, which a server's requests bring.
KEPT = 16
INSTALL = "pip install llguidance"
MISSING = f"answers are not held to the action language, and take longer: llguidance is not installed; {INSTALL}"


@dataclass(frozen=True)
class GrammarText:
    """The text of a grammar that the user gives; `name` is what errors call it."""

    name: str
    text: str
    is_schema: bool


Choice = Literal["auto", "actions", "off"] | GrammarText
AUTO: Final = "auto"


def read_grammar(choice: str) -> Choice:
    """Return what ``--grammar`` names: ``auto``, ``actions``, ``off``, or a file in Lark or with a JSON schema.

    Raises:
        UsageError: The file is not there, is too large or not text, or its name ends in neither.
    """
    if choice in ("auto", "actions", "off"):
        return choice  # type: ignore[return-value]
    path, remedy = Path(choice), f"give auto, actions, off or a file: *{LARK} or *{SCHEMA}"
    if path.suffix not in (LARK, SCHEMA):
        raise UsageError(f"--grammar {choice}", "is neither", remedy)
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
        text = data.decode("utf-8-sig")
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else "is not UTF-8"
        raise UsageError(f"--grammar {choice}", f"cannot be read: {why}", remedy) from error
    if len(data) > MAX_BYTES:
        raise UsageError(f"--grammar {choice}", f"is larger than {MAX_BYTES >> 20} MiB", "give a smaller grammar")
    return GrammarText(f"--grammar {choice}", text, path.suffix == SCHEMA)


class Grammars:
    """The grammars of a bundle's answers, each compiled when it is first asked for.

    Args:
        manifest: Of the bundle.
        chat: Of the bundle.

    Attributes:
        default: What answers are held to where nothing else is said; ``auto`` is what the bundle says.
        notes: What there is to say of the bundle's own grammar; whoever says it takes it out.
    """

    def __init__(self, manifest: Manifest, chat: Chat) -> None:
        self.manifest, self.chat = manifest, chat
        self.default: Choice = AUTO
        self.notes: list[str] = []
        self._vocabulary: Vocabulary | None = None
        self._compiled: dict[GrammarText, Grammar] = {}
        self._actions: Grammar | None = None
        self._tried = False

    def find(self, choice: Choice | None) -> Grammar | None:
        """Return the grammar that answers are held to, if there is one.

        Without llguidance, or where the bundle's tokenizer takes no grammar, ``auto`` is none, with a note.

        Raises:
            UsageError: The user's grammar is none, or allows no answer.
            UnsupportedError: llguidance is not here, or takes no tokenizer like the bundle's.
        """
        choice = self.default if choice is None else choice
        if choice == "off" or (choice == AUTO and self.manifest.model.task != PHONE_AGENT):
            return None
        if isinstance(choice, GrammarText):
            return self._users(choice)
        if choice == AUTO and not installed():
            self._note(MISSING)
            return None
        try:
            return self._own()
        except UnsupportedError as error:
            if choice != AUTO:
                raise
            self._note(f"answers are not held to the action language: {error.why}")
            return None

    def forget(self) -> None:
        """Forget what was compiled for requests: most bring a grammar of their own, and some a large one."""
        self._compiled.clear()

    def take_notes(self, guide: Guide | None) -> list[str]:
        """Return what there is to say behind an answer, and of what guided it."""
        notes, self.notes = self.notes, []
        lost = [f"the grammar was followed to a point of the answer: {guide.lost}"] if guide and guide.lost else []
        return [*notes, *lost]

    def _note(self, note: str) -> None:
        """Say it once."""
        if not self._tried:
            self._tried = True
            self.notes.append(note)

    def _own(self) -> Grammar:
        if self._actions is None:
            with _supported("the action language"):
                vocabulary = self._words()
                self._actions = Grammar(vocabulary, action_grammar(self.chat.tokenizer.get_vocab()))
        return self._actions

    def _users(self, wanted: GrammarText) -> Grammar:
        if wanted not in self._compiled:
            with _supported(wanted.name):
                vocabulary = self._words()
            try:
                if len(wanted.text) > MAX_BYTES:
                    raise GrammarError(f"it is larger than {MAX_BYTES >> 20} MiB")
                check_numbers(wanted.text, is_schema=wanted.is_schema)
                grammar = call_deep(partial(_compile, vocabulary, wanted))
            except (GrammarError, SchemaNumberError, MemoryError) as error:
                raise UsageError(wanted.name, f"is no grammar: {error}", "correct it") from error
            if len(self._compiled) >= KEPT:
                del self._compiled[next(iter(self._compiled))]
            self._compiled[wanted] = grammar
        return self._compiled[wanted]

    def _words(self) -> Vocabulary:
        if self._vocabulary is None:
            ends = self.manifest.generation.eos_token_ids
            self._vocabulary = Vocabulary(self.chat.bounded, self.manifest.model.vocabulary, ends)
        return self._vocabulary


def _compile(vocabulary: Vocabulary, wanted: GrammarText) -> Grammar:
    return Grammar(vocabulary, schema_source(wanted.text) if wanted.is_schema else wanted.text)


@contextmanager
def _supported(what: str) -> Iterator[None]:
    try:
        yield
    except ImportError as error:
        raise UnsupportedError(what, "needs llguidance, which is not installed", INSTALL) from error
    except GrammarError as error:
        raise UnsupportedError(what, f"cannot be followed: {error}", "use --grammar off") from error
