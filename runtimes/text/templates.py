"""Chat templates as transformers 5.23 renders them (``transformers.utils.chat_template_utils``), within limits.

Which of a folder's templates speaks, and what tokens it knows by name, follows ``PreTrainedTokenizerBase`` and
``ProcessorMixin``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from jinja2.exceptions import TemplateSyntaxError
from msgspec import Struct

from edgeglm.errors import UnsupportedError
from edgeglm.runtimes.text.sidecars import Sidecars, typed
from edgeglm.runtimes.text.template_environment import RefusedError, make_environment
from edgeglm.runtimes.text.template_prices import MAX_SOURCE, MAX_TEXT, TemplateLimitError, metered

FILE, FOLDER, LEGACY, PROCESSOR = (
    "chat_template.jinja", "additional_chat_templates", "chat_template.json", "processor_config.json",
)  # fmt: skip
SETTINGS, TOKENS = "tokenizer_config.json", "special_tokens_map.json"
DEFAULT, TOOLS = "default", "tool_use"
SAFE = re.compile(r"[A-Za-z0-9_.-]{1,64}")  # names of files that a bundle takes over
MAX_SHOWN = 200  # characters of what a template says
# Names that a message's reasoning goes by; templates read the first, and gpt-oss's the second.
REASONING = ("reasoning_content", "thinking", "reasoning")


class Named(Struct):
    """A checkpoint's template with its name and file."""

    name: str
    template: str


Source = str | list[Named] | dict[str, str] | None


@dataclass(frozen=True)
class Template:
    """A template's text and the file that it is from."""

    file: Path
    text: str


class ChatTemplate:
    """A checkpoint's chat templates, compiled.

    Args:
        sources: By their names; the one named ``default`` speaks, and ``tool_use`` where there are tools.
        tokens: Special tokens by the names that templates know.

    Raises:
        UnsupportedError: One of them is no template that can be compiled.
    """

    def __init__(self, sources: Mapping[str, Template], tokens: Mapping[str, str]) -> None:
        self.sources, self.tokens = sources, tokens
        self.now: datetime | None = None  # what strftime_now takes the time to be, if not the present
        self.environment = make_environment(lambda: self.now or datetime.now())
        self.compiled = {name: self._compile(template) for name, template in sources.items()}

    @property
    def file(self) -> Path:
        """The file of the template that is used without tools."""
        return self.sources.get(DEFAULT, next(iter(self.sources.values()))).file

    def _compile(self, template: Template) -> Any:  # noqa: ANN401
        if len(template.text) > MAX_SOURCE:
            raise _wrong(template, f"has {len(template.text)} characters, and {MAX_SOURCE} are taken")
        try:
            with metered():
                return self.environment.from_string(template.text)
        except TemplateSyntaxError as error:
            raise _wrong(template, f"is no chat template: {_shown(error)} in line {error.lineno}") from error
        except Exception as error:  # Python's own compiler has more to say of odd ones
            raise _wrong(template, f"is no chat template: {_shown(error)}") from error

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Any] | None = None,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """Return the text of a conversation that is to be answered.

        Args:
            messages: As the template takes them.
            tools: Likewise.
            variables: Further names for the template, such as ``enable_thinking``; they replace none of its own.

        Raises:
            UnsupportedError: The template refuses the conversation, fails, or takes too much time or memory.
        """
        name = TOOLS if tools is not None and TOOLS in self.compiled else DEFAULT
        if name not in self.compiled:
            first, names = next(iter(self.sources.values())), ", ".join(sorted(self.sources))
            raise _wrong(first, f"is one of several ({names}), and none of them is called {DEFAULT}")
        conversation = [
            _aliased({key: value for key, value in message.items() if value is not None}) for message in messages
        ]
        given = {"messages": conversation, "tools": tools, "documents": None, "add_generation_prompt": True}
        return self._rendered(self.sources[name], self.compiled[name], {**(variables or {}), **self.tokens, **given})

    def _rendered(self, template: Template, compiled: Any, names: dict[str, Any]) -> str:  # noqa: ANN401
        pieces: list[str] = []
        try:
            with metered():
                length = 0
                for piece in compiled.generate(names):
                    length += len(piece)
                    if length > MAX_TEXT:
                        raise TemplateLimitError(f"it makes a text of more than {MAX_TEXT} characters")
                    pieces.append(piece)
        except RefusedError as error:
            why = f"refuses the conversation: {_shown(error)}"
            raise UnsupportedError(template.file, why, "change the messages") from error
        except TemplateLimitError as error:
            raise _wrong(template, f"cannot be rendered within its limits: {_shown(error)}") from error
        except RecursionError as error:
            raise _wrong(template, "cannot be rendered: it calls itself without end") from error
        except Exception as error:  # a template may fail in any way that Python has
            raise _wrong(template, f"cannot be rendered: {_shown(error)}") from error
        if not any(pieces):
            raise _wrong(template, "renders nothing")
        return "".join(pieces)


def read_templates(sidecars: Sidecars, *, sees: bool) -> ChatTemplate | None:
    """Return the chat templates of a checkpoint or bundle, or None where it has none.

    Args:
        sidecars: Where its tokenizer's files are.
        sees: Whether the model has a processor, whose files then go first.

    Raises:
        DamagedFileError: One of its files cannot be read.
        UnsupportedError: A template cannot be compiled, or files contradict one another.
    """
    sources = (_of_processor(sidecars) if sees else {}) or _of_tokenizer(sidecars) or _of_json(sidecars, LEGACY)
    return ChatTemplate(sources, special_tokens(sidecars)) if sources else None


def named_templates(folder: Path) -> list[str]:
    """Return the files of templates that go by names of their own, relative to the folder."""
    found = sorted(path.name for path in (folder / FOLDER).glob("*.jinja") if path.is_file())
    return [f"{FOLDER}/{name}" for name in found if SAFE.fullmatch(name)]


def special_tokens(sidecars: Sidecars) -> dict[str, str]:
    """Return the tokens that ``tokenizer_config.json`` and ``special_tokens_map.json`` name, such as ``bos_token``."""
    settings = _settings(sidecars)
    for key in ("model_specific_special_tokens", "extra_special_tokens"):
        if isinstance(more := settings.get(key), dict):
            settings = {**more, **settings}
    found = {}
    for key, value in settings.items():
        token = value.get("content") if isinstance(value, dict) else value
        if key.endswith("_token") and isinstance(token, str):
            found[key] = token
    return found


def extra_tokens(sidecars: Sidecars) -> list[str]:
    """Return the special tokens that the same files list without names."""
    settings = _settings(sidecars)
    extra = settings.get("extra_special_tokens")
    listed = extra if extra and isinstance(extra, list) else settings.get("additional_special_tokens")
    tokens = [
        token.get("content") if isinstance(token, dict) else token
        for token in (listed if isinstance(listed, list) else ())
    ]
    return [token for token in tokens if isinstance(token, str)]


def _settings(sidecars: Sidecars) -> dict[str, Any]:
    settings = sidecars.object(SETTINGS)
    return settings if "added_tokens_decoder" in settings else settings | sidecars.object(TOKENS)


def _of_tokenizer(sidecars: Sidecars) -> dict[str, Template]:
    return _of_files(sidecars) or _of_json(sidecars, SETTINGS)


def _of_processor(sidecars: Sidecars) -> dict[str, Template]:
    if found := _of_json(sidecars, PROCESSOR):
        return found
    found, files = _of_json(sidecars, LEGACY), _of_files(sidecars)
    if found and files.keys() - {DEFAULT}:
        raise UnsupportedError(sidecars.file(LEGACY), f"contradicts {FOLDER}", f"put its template into {FILE}")
    return found or files


def _of_json(sidecars: Sidecars, name: str) -> dict[str, Template]:
    return _sources(sidecars.file(name), sidecars.object(name).get("chat_template"))


def _of_files(sidecars: Sidecars) -> dict[str, Template]:
    names = {DEFAULT: FILE, **{Path(name).stem: name for name in named_templates(sidecars.folder)}}
    texts = {name: (sidecars.file(file), sidecars.text(file)) for name, file in names.items()}
    return {name: Template(file, text) for name, (file, text) in texts.items() if text is not None}


def _sources(file: Path, value: object) -> dict[str, Template]:
    found: Source = typed(file, "chat_template", value, Source)  # type: ignore[arg-type]
    if isinstance(found, str):
        return {DEFAULT: Template(file, found)}
    named = found if isinstance(found, dict) else {template.name: template.template for template in found or ()}
    return {name: Template(file, text) for name, text in named.items()}


def _aliased(message: dict[str, Any]) -> dict[str, Any]:
    """Give a message's reasoning the names that templates know."""
    reasoning = next((message[key] for key in REASONING if message.get(key) is not None), None)
    return message if reasoning is None else {"thinking": reasoning, **message, "reasoning_content": reasoning}


def _wrong(template: Template, why: str) -> UnsupportedError:
    return UnsupportedError(template.file, why, f"correct {template.file.name} of the checkpoint, or take another one")


def _shown(error: Exception) -> str:
    """Return what an error says, as a line that can be shown."""
    text = str(error) or type(error).__name__
    text = "".join(letter if letter.isprintable() else " " for letter in text[: MAX_SHOWN + 1])
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}…"
