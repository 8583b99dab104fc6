"""A sandbox for templates that ends: a template is code of whoever published the checkpoint.

Every loop, call, filter, test and operator pays for what it touches and makes, before it makes it where it would be
much, and a template has so much to spend (`edgeglm.runtimes.text.template_prices`). So time and memory are bounded by
counting, in any thread.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import wraps
from typing import Any

from jinja2 import nodes
from jinja2.runtime import Context, Macro, Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

from edgeglm.runtimes.text.template_prices import (
    FILTERS,
    STEP,
    TemplateLimitError,
    check_integers,
    listed,
    make,
    price_format,
    price_lorem,
    price_method,
    price_operator,
    size,
    spend,
    weigh,
)  # fmt: skip

MAX_SLOW = 16 << 10  # characters for filters that search with patterns
# Filters and tests that look at no more than the outermost of their value.
SHALLOW = frozenset(
    "length count first last default d items selectattr rejectattr map select reject list attr safe "
    "defined undefined none string mapping sequence iterable boolean true false integer float number callable sameas "
    "filter test escaped odd even".split()
)
SLOW = frozenset("urlize wordwrap striptags pprint xmlattr".split())
MEASURED = frozenset("center indent batch slice wordwrap truncate round tojson".split())  # by integers


class BoundedEnvironment(ImmutableSandboxedEnvironment):
    """Jinja's immutable sandbox, with a price on everything; use within `metered`."""

    intercepted_binops = frozenset(["+", "*", "%", "**"])

    def __init__(self, **options: Any) -> None:
        super().__init__(finalize=_output, **options)
        self.concat = _concat  # type: ignore[method-assign]
        filters: dict[str, Any] = {**self.filters}
        self.filters = {name: _priced(name, function) for name, function in filters.items()}
        self.filters["join"] = _priced_join(filters["join"])
        tests: dict[str, Any] = {**self.tests}
        self.tests = {name: _priced(name, function) for name, function in tests.items()}

    def add_filter(self, name: str, function: Callable[..., Any]) -> None:
        """Give templates a filter, at the price of its arguments and its result."""
        self.filters[name] = _priced(name, function)

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree: nodes.Template = _Pricing().visit(super()._parse(source, name, filename))
        return tree

    def getitem(self, obj: Any, argument: Any) -> Any:
        """Pay for what is hashed."""
        if isinstance(argument, tuple):
            weigh(argument)
        return super().getitem(obj, argument)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Pay for what an operator makes."""
        price_operator(operator, left, right)
        return super().call_binop(context, operator, left, right)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """Pay for what ``str.format`` makes."""
        function = super().wrap_str_format(value)
        if function is None:
            return None
        text: str = value.__self__

        def format_text(*arguments: Any, **named: Any) -> str:
            price_format(text, *arguments, **named)
            return function(*arguments, **named)

        return format_text

    def call(__self, __context: Context, __obj: Any, *arguments: Any, **named: Any) -> Any:
        """Pay for a call, and for what methods of texts and lists make."""
        spend(STEP)
        owner, name = getattr(__obj, "__self__", None), getattr(__obj, "__name__", "")
        if owner is __self or isinstance(__obj, Macro):
            return super().call(__context, __obj, *arguments, **named)
        if isinstance(owner, str):
            if name == "join":
                arguments = tuple(map(listed, arguments))
            price_method(owner, name, [*arguments, *named.values()])
        elif (isinstance(owner, int) and name.endswith("_bytes")) or isinstance(owner, bytes):
            raise TemplateLimitError(f"it calls {name}, which makes bytes or is of bytes")
        elif name == "generate_lorem_ipsum":
            price_lorem(*arguments, **named)
        else:
            weigh([owner if name in ("index", "count") else None, *arguments, *named.values()])
        result = super().call(__context, __obj, *arguments, **named)
        spend(size(result))
        return result

    # What `_Pricing` puts around parts of a template.

    def paid(self, characters: int) -> None:
        """Pay for a round of a loop, or a macro."""
        spend(characters)

    def counted(self, items: Any, condition: int) -> Any:
        """Pay for what a loop goes through before its first round, each by the size of its condition."""
        if isinstance(items, Undefined):
            return items
        found = listed(items)
        spend((8 + condition) * len(found))
        return found

    def touched(self, value: Any) -> Any:
        """Pay for looking at all of a value."""
        if isinstance(value, str):
            spend(len(value))
        else:
            weigh(value)
        return value

    def made(self, value: Any) -> Any:
        """Pay for a slice."""
        spend(size(value))
        return value

    def joined(self, *values: Any) -> str:
        """Pay for texts put behind one another."""
        make(sum(map(weigh, values)))
        return "".join(map(str, values))


class _Pricing(NodeTransformer):
    """Puts prices into a template's tree, where Jinja has no place to put them in."""

    def visit_For(self, node: nodes.For) -> nodes.Node:
        self.generic_visit(node)
        node.iter = _call("counted", node.iter, nodes.Const(_count([node.test] if node.test else [])))
        node.body.insert(0, _payment(node))
        return node

    def visit_Macro(self, node: nodes.Macro) -> nodes.Node:
        self.generic_visit(node)
        node.body.insert(0, _payment(node))
        return node

    def visit_List(self, node: nodes.List) -> nodes.Node:
        self.generic_visit(node)
        made: nodes.Expr = _call("made", node)
        return made

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:
        self.generic_visit(node)
        made: nodes.Expr = _call("made", node) if node.ctx == "load" else node
        return made

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        joined: nodes.Call = _call("joined", *node.nodes)
        return joined

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:
        self.generic_visit(node)
        operands: list[Any] = [node, *node.ops]
        for part in operands:
            if not isinstance(part.expr, nodes.Const):
                part.expr = _call("touched", part.expr)
        return node

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:
        self.generic_visit(node)
        made: nodes.Expr = _call("made", node) if isinstance(node.arg, nodes.Slice) else node
        return made

    def visit_Dict(self, node: nodes.Dict) -> nodes.Node:
        self.generic_visit(node)
        for pair in node.items:
            if not isinstance(pair.key, nodes.Const):
                pair.key = _call("touched", pair.key)
        made: nodes.Expr = _call("made", node)
        return made


def _count(parts: Iterable[nodes.Node]) -> int:
    """Return what one round of a part of a template costs, by its nodes."""
    return 8 * sum(1 + sum(1 for _ in part.find_all(nodes.Node)) for part in parts)


def _payment(node: nodes.For | nodes.Macro) -> nodes.ExprStmt:
    cost = nodes.Const(STEP + _count(node.body)).set_lineno(node.lineno)
    statement = nodes.ExprStmt(_call("paid", cost))
    statement.set_lineno(node.lineno)
    return statement


def _call(name: str, *arguments: Any) -> Any:
    method = nodes.EnvironmentAttribute(name).set_lineno(arguments[0].lineno)
    return nodes.Call(method, list(arguments), [], None, None).set_lineno(arguments[0].lineno)


def _output(value: Any) -> Any:
    """Pay for what ``{{ }}`` writes."""
    make(8 + (len(value) if isinstance(value, str) else weigh(value)))
    return value


def _concat(pieces: Iterable[str]) -> str:
    found = list(pieces)
    make(sum(map(len, found)))
    return "".join(found)


def _priced(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a filter or test that pays; its first argument may be Jinja's own."""
    begin = 1 if hasattr(function, "jinja_pass_arg") else 0

    @wraps(function)
    def priced(*arguments: Any, **named: Any) -> Any:
        value, *others = arguments[begin:] or [None]
        more = [*others, *named.values()]
        spend(STEP + size(value) if name in SHALLOW else STEP + sum(map(weigh, [value, *more])))
        if price := FILTERS.get(name):
            price(value, *others, **named)
        if name in MEASURED:
            check_integers(more)
        if name in SLOW and weigh(value) > MAX_SLOW:
            raise TemplateLimitError(f"it gives {name} more than {MAX_SLOW} characters")
        result = function(*arguments, **named)
        spend(size(result))
        return _paying(result) if isinstance(result, Iterator) else result

    return priced


def _paying(items: Iterator[Any]) -> Iterator[Any]:
    """Yield what a filter makes when it is asked for, at a price."""
    for item in items:
        spend(STEP)
        yield item


def _priced_join(function: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(function)
    def join(context: Any, value: Any, d: Any = "", attribute: Any = None) -> Any:
        found = value if isinstance(value, Undefined) else listed(value)
        make(weigh(found) + size(found) * len(str(d)))
        return function(context, found, d, attribute)

    return join
