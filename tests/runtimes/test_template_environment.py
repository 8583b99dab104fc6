"""Templates that fail, or take time or memory without end: each is refused in a line."""

from __future__ import annotations

import time
from datetime import datetime
from pathlib import Path

import pytest

from edgeglm.errors import UnsupportedError
from edgeglm.runtimes.text.template_environment import make_environment
from edgeglm.runtimes.text.template_prices import MAX_TEXT, metered
from edgeglm.runtimes.text.templates import ChatTemplate, Template

FILE = Path("chat_template.jinja")
ENDLESS = {
    "nested loops": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "a condition that never holds": "{% for i in range(9) %}{% for j in range(99999) if j < 0 %}{% endfor %}{% endfor %}" * 40,
    "doubling": "{% set n = namespace(x='aaaaaaaaaa') %}{% for i in range(64) %}{% set n.x = n.x ~ n.x %}{% endfor %}{{ n.x }}",
    "doubling by +": "{% set n = namespace(x='a') %}{% for i in range(64) %}{% set n.x = n.x + n.x %}{% endfor %}",
    "doubling by join": "{% set n = namespace(x='a') %}{% for i in range(64) %}{% set n.x = [n.x, n.x] | join %}{% endfor %}",
    "doubling by format": "{% set n = namespace(x='a') %}{% for i in range(64) %}{% set n.x = '{0}{0}'.format(n.x) %}{% endfor %}",
    "doubling by %": "{% set n = namespace(x='a') %}{% for i in range(64) %}{% set n.x = '%s%s' % (n.x, n.x) %}{% endfor %}",
    "doubling by replace": "{% set n = namespace(x='a') %}{% for i in range(64) %}{% set n.x = n.x.replace('a', 'aa') %}{% endfor %}",
    "doubling by a block": "{% set n = namespace(x='a') %}{% for i in range(64) %}{% set y %}{{ n.x }}{{ n.x }}{% endset %}"
    "{% set n.x = y %}{% endfor %}",
    "shared lists, printed": "{% set n = namespace(x=[1]) %}{% for i in range(64) %}{% set n.x = [n.x, n.x] %}{% endfor %}{{ n.x }}",
    "shared lists, compared": "{% set n = namespace(x=[1], y=[1]) %}{% for i in range(64) %}{% set n.x = [n.x, n.x] %}"
    "{% set n.y = [n.y, n.y] %}{% endfor %}{{ n.x == n.y }}",
    "shared lists, as JSON": "{% set n = namespace(x=[1]) %}{% for i in range(64) %}{% set n.x = [n.x, n.x] %}{% endfor %}"
    "{{ n.x | tojson }}",
    "shared tuples, hashed": "{% set n = namespace(x=(1,)) %}{% for i in range(64) %}{% set n.x = (n.x, n.x) %}{% endfor %}{{ {n.x: 1} }}",
    "a namespace in itself": "{% set n = namespace(x=1) %}{% set n.x = [n, n] %}{{ n }}",
    "10 GB": "{{ 'a' * 10**10 }}",
    "10 GB from the left": "{{ 10**10 * 'a' }}",
    "a long list": "{{ ([1] * 10**9) | length }}",
    "a large number": "{{ 10 ** (10 ** 10) }}",
    "a wide field": "{{ '{:1000000000}'.format(1) }}",
    "a nested width": "{{ '{:{w}}'.format(1, w=10**9) }}",
    "a wide %": "{{ '%1000000000d' % 1 }}",
    "a wide % by a star": "{{ '%*d' % (10**9, 1) }}",
    "a wide format filter": "{{ '%1000000000d' | format(1) }}",
    "center": "{{ 'a' | center(10**9) }}",
    "ljust": "{{ 'a'.ljust(10**9) }}",
    "expandtabs": "{{ '\t'.expandtabs(10**9) }}",
    "indent": "{{ 'a\na' | indent(10**9) }}",
    "batch": "{{ [1] | batch(10**9, 0) | list | length }}",
    "slice": "{{ [1] | slice(10**9) | list | length }}",
    "to_bytes": "{{ (1).to_bytes(10**9, 'big') | length }}",
    "JSON's indent": "{{ [[1]] | tojson(indent=10**9) }}",
    "JSON's separators": "{% set s = 'a' * 100000 %}{{ range(1000) | list | tojson(separators=(s, s)) }}",
    "lipsum": "{{ lipsum(10**6) }}",
    "translate": "{{ ('a' * 10000).translate({97: 'b' * 10000}) }}",
    "recursive macros": "{% macro f(n) %}{{ f(n - 1) ~ f(n - 1) if n else 'x' }}{% endmacro %}{{ f(40) }}",
    "a filter in a loop": "{% for i in range(99999) %}{% if range(99999) | sum %}{% endif %}{% endfor %}",
    "filters behind one another": "{% for i in range(99999) %}{{ range(99999)" + " | select" * 60 + " | first }}{% endfor %}",
    "filters of ranges": "{% for i in range(99) %}{{ range(99999)" + " | select" * 60 + " | last }}{% endfor %}",
    "a long body": "{% for i in range(99999) %}" + "{% if x %}{% endif %}" * 1000 + "{% endfor %}",
    "a long body of nothing": "{% set x = '' %}{% for i in range(99999) %}" + "{{ x }}" * 2000 + "{% endfor %}",
    "a long condition": "{% for i in range(99) %}{% for j in range(99999) if " + "x or " * 2000 + "x %}{% endfor %}{% endfor %}",
    "a long list in a loop": "{% for i in range(99999) %}{% if [i" + ", 1" * 5000 + "] %}{% endif %}{% endfor %}",
    "lists that change": "{% set n = namespace(x=[1], y=[1]) %}{% for i in range(64) %}{% set n.x = [n.x, n.x] %}{% set n.y = [n.y, n.y] %}"
    "{% endfor %}{% for i in [0, 1] %}{{ loop.changed(n.x if i else n.y) }}{% endfor %}",
    "bytes": "{{ 'a'.encode().ljust(10**9) | length }}",
    "a slow encoding": "{{ ('ä' * 4000000).encode('punycode') | length }}",
    "a width in a mapping": "{{ '{a:{w}}'.format_map({'a': 1, 'w': 10**9}) }}",
    "a width in an argument": "{{ '{0:{1[w]}}'.format(1, {'w': 10**9}) }}",
    "a macro without end": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "long output": "{% for i in range(5000) %}" + "a" * 1000 + "{% endfor %}",
    "comparisons of long texts": "{% set a = 'a' * 4000000 %}{% for i in range(99999) %}{% if a == a ~ '' %}{% endif %}{% endfor %}",
    "a slow filter": "{{ ('a@' * 100000) | urlize }}",
    "a long date": "{{ strftime_now('%c' * 1000000) }}",
    "parentheses": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "a long template": "{{ 1 }}" * 100_000,
}  # fmt: skip
WRONG = {
    "no such tag": ("{% if %}", "is no chat template: .* in line 1"),
    "undefined": ("{{ a.b.c }}", "cannot be rendered: 'a' is undefined"),
    "empty": ("", "renders nothing"),
    "raise_exception": (
        "{{ raise_exception('no\x1b[31m system prompt') }}",
        r"refuses the conversation: no \[31m system prompt; change",
    ),
    "a long reason": ("{{ raise_exception('no ' * 5000) }}", r"refuses the conversation: (no )+n?o?…; change"),
    "another's file": ("{% include '/etc/passwd' %}", "cannot be rendered"),
    "a type's error": ("{{ 1 + 'a' }}", "cannot be rendered: unsupported operand"),
    "division by zero": ("{{ 1 / 0 }}", "cannot be rendered: division by zero"),
    "Python's own": ("{{ ''.__class__.__mro__ }}", "cannot be rendered|renders nothing"),
    "a namespace's own": ("{{ namespace(__class__=1) }}", "begins with an underscore"),
}


def render(text: str) -> str:
    messages = [{"role": "user", "content": "hello"}]
    return ChatTemplate({"default": Template(FILE, text)}, {}).render(messages)


@pytest.mark.parametrize("name", ENDLESS)
def test_a_template_without_end_is_a_line(name: str) -> None:
    start = time.monotonic()
    with pytest.raises(UnsupportedError) as caught:
        render(ENDLESS[name])
    assert time.monotonic() - start < 60
    assert len(str(caught.value)) < 400
    assert "chat_template.jinja of the checkpoint" in str(caught.value)


@pytest.mark.parametrize("name", WRONG)
def test_a_template_that_fails_says_why_in_a_line(name: str) -> None:
    text, why = WRONG[name]
    with pytest.raises(UnsupportedError, match=why) as caught:
        render(text)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 400


def test_the_time_is_the_one_it_is_given() -> None:
    environment = make_environment(lambda: datetime(2026, 1, 2))
    with metered():
        assert environment.from_string("{{ strftime_now('%Y-%m-%d') }}").render() == "2026-01-02"


def test_the_limit_of_a_text_is_that_of_a_conversation() -> None:
    assert len(render("{{ 'a' * " + str(MAX_TEXT // 2) + " }}")) == MAX_TEXT // 2
