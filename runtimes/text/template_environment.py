"""The environment of chat templates: the tags, filters, functions and names that transformers gives them."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import datetime
from typing import Any

from jinja2 import nodes
from jinja2.exceptions import SecurityError, TemplateError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Macro
from jinja2.utils import Namespace

from edgeglm.runtimes.text.template_limits import BoundedEnvironment
from edgeglm.runtimes.text.template_prices import TemplateLimitError, make, spend, weigh

MAX_INDENT = 1000  # of JSON


class RefusedError(TemplateError):
    """A template's own refusal of a conversation."""


class _Generation(Extension):
    """``{% generation %}``: marks what the assistant said, which is of use in training alone."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> nodes.Node:
        """Take the body as it is."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_body"), [], [], body).set_lineno(line)

    def _body(self, caller: Macro) -> str:
        return str(caller())


class _Namespace(Namespace):
    """Refuses names that could reach Python's own, as transformers does."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        self, *rest = args
        attributes = dict(*rest, **kwargs)
        for name in attributes:
            _check_name(name)
        Namespace.__init__(self, attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a namespace takes no name that begins with an underscore, such as {name!r}")


def make_environment(now: Callable[[], datetime]) -> BoundedEnvironment:
    """Return an environment whose ``strftime_now`` tells the time that `now` returns."""

    def strftime_now(format: str) -> str:
        spend(256 * len(format))  # as much as C makes of one
        return now().strftime(format)

    environment = BoundedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])
    environment.add_filter("tojson", _to_json)
    environment.globals |= {
        "raise_exception": _raise_exception, "strftime_now": strftime_now, "dict": _Dict(), "namespace": _Namespace,
    }  # fmt: skip
    return environment


class _Dict:
    """``dict`` without its class, whose attributes would lead elsewhere."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        """Make a dictionary of keys."""
        return dict.fromkeys(*args, **kwargs)


def _raise_exception(message: object) -> None:
    raise RefusedError(str(message))


def _to_json(
    x: object,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Return JSON as transformers' filter of that name, which unlike Jinja's neither escapes HTML nor sorts."""
    if isinstance(indent, (int, str)) and len(" " * indent if isinstance(indent, int) else indent) > MAX_INDENT:
        raise TemplateLimitError(f"it indents JSON by more than {MAX_INDENT}")
    make(weigh(x) * max(1, sum(map(len, separators or ()))))
    encoder = json.JSONEncoder(ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
    pieces = []
    for piece in encoder.iterencode(x):
        make(len(piece))
        pieces.append(piece)
    return "".join(pieces)
