"""jinja2's sandbox with a budget: a chat template from a stranger's file neither fills the memory nor runs on.

jinja2 keeps a template away from Python's insides, but not from doubling a text sixty times or from loops inside loops.
So what can make much of little is counted *before* it is made (operators, ``~``, replace, join, indent, tojson), what
comes out of expressions, calls, filters and slices when it is there; every pass of a loop looks at the clock.
What only lays out pages (center, format, wordwrap, ...) and no chat template needs is not there at all.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from typing import TYPE_CHECKING, Any

from jinja2 import TemplateError, nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from jinja2 import Template
    from jinja2.runtime import Context

MAX_TEXT = 16 << 20  # characters of one text, or items of a list
MAX_TOTAL = 128 << 20  # of all that one rendering makes, intermediate values included
MAX_SECONDS = 2.0  # of this thread's CPU time, so that a busy neighbour does not count
MAX_POWER, MAX_WIDTH_DIGITS = 64, 5
ABSENT_METHODS = frozenset("center expandtabs format format_map ljust rjust translate zfill".split())
ABSENT_FILTERS = "batch center format pprint slice urlize wordwrap xmlattr".split()
WRITING_FILTERS = (
    "capitalize e escape forceescape indent join lower replace string striptags title tojson trim truncate upper"
    " urlencode wordcount"
).split()


class _Budget:
    """What is left of a rendering's characters and time."""

    def __init__(self) -> None:
        self.left, self.until = MAX_TOTAL, time.thread_time() + MAX_SECONDS

    def spend(self, size: int) -> None:
        self.left -= max(0, size)
        if size > MAX_TEXT or self.left < 0:
            raise TemplateError(f"it makes a text of more than {MAX_TEXT:,} characters, or {MAX_TOTAL:,} in all")
        if time.thread_time() > self.until:
            raise TemplateError(f"it takes more than {MAX_SECONDS:g} s")


_budget: ContextVar[_Budget] = ContextVar("budget")


@contextmanager
def bounded() -> Iterator[None]:
    """Give what this thread renders inside one budget; TemplateError where it does not suffice."""
    token = _budget.set(_Budget())
    try:
        yield
    finally:
        _budget.reset(token)


def spend(size: int) -> None:
    """Count characters that are about to be made; TemplateError if there is no room, or no time, for them."""
    _budget.get().spend(size)


def weight(value: object) -> int:
    """Return about how many characters a value has when it is written out, with quotes and commas; never 0.

    Past `MAX_TEXT` it stops counting: a list that holds another twice, and so on, is larger than anything.
    """
    total, ahead = 0, [value]
    while ahead and total <= MAX_TEXT:
        each = ahead.pop()
        total += 3
        if isinstance(each, str):
            total += len(each)
        elif isinstance(each, Namespace):
            raise TemplateError("it writes a namespace out")
        elif isinstance(each, Mapping):
            ahead += [*each.keys(), *each.values()]
        elif isinstance(each, Collection):
            ahead += each
    return total


class Sandbox(ImmutableSandboxedEnvironment):
    """The environment of chat templates.  What it compiled is rendered inside `bounded`."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings, finalize=_written)
        del self.globals["lipsum"]
        self.filters = {name: each for name, each in self.filters.items() if name not in ABSENT_FILTERS}

    def compile_bounded(self, source: str) -> Template:
        """Compile a template that counts; filters and globals must be there before."""
        self.filters = {name: _counted(name, function) for name, function in self.filters.items()}
        tree = _Counting().visit(self.parse(source))
        with bounded():  # jinja2 computes constants here
            return self.from_string(tree.set_environment(self))

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """Tell whether a template may have an attribute."""
        absent = isinstance(obj, str) and attr in ABSENT_METHODS
        return not absent and super().is_safe_attribute(obj, attr, value)

    def wrap_str_format(self, value: Any) -> Callable[..., Any] | None:
        """Let `is_safe_attribute` refuse ``str.format``, which jinja2 would hand out before it asks."""
        return None if super().wrap_str_format(value) is None else _no_format

    def tick(self) -> bool:
        """Look at the clock; true, so that it may stand before a condition."""
        spend(1)
        return True

    def concat_texts(self, *values: Any) -> str:
        """Return ``a ~ b ~ ...``."""
        spend(weight(values))
        return "".join(map(str, values))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Compute it if there is room for the result."""
        spend(_size(operator, left, right))
        return super().call_binop(context, operator, left, right)

    def call(self, context: Context, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Call it; methods of texts that make much of little only if there is room for the result."""
        text, name = getattr(obj, "__self__", None), getattr(obj, "__name__", "")
        if isinstance(text, str) and name == "join" and args:
            args = (_listed(args[0]), *args[1:])
            spend(weight(args[0]) + len(args[0]) * len(text))
        elif isinstance(text, str) and name == "replace" and args:
            spend(text.count(str(args[0])) * weight([args[1:], kwargs]))
        return _paid(super().call(context, obj, *args, **kwargs))

    def part(self, value: Any, start: Any, stop: Any, step: Any) -> Any:
        """Return ``value[start:stop:step]``, which is a copy."""
        return _paid(value[start:stop:step])


class _Counting(NodeTransformer):
    """Has loops and macros look at the clock, and counts what jinja2 computes past its environment: ``~``, slices."""

    def visit_For(self, node: nodes.For) -> nodes.Node:  # noqa: N802 - jinja2's name
        self.generic_visit(node)
        if node.test is not None:
            node.test = nodes.And(_ask("tick"), node.test)
        return _ticking(node)

    def visit_Macro(self, node: nodes.Macro) -> nodes.Node:  # noqa: N802 - jinja2's name
        self.generic_visit(node)
        return _ticking(node)

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802 - jinja2's name
        self.generic_visit(node)
        return _ask("concat_texts", *node.nodes)

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:  # noqa: N802 - jinja2's name
        self.generic_visit(node)
        if not isinstance(node.arg, nodes.Slice):
            return node
        ends = (node.arg.start, node.arg.stop, node.arg.step)
        return _ask("part", node.node, *(nodes.Const(None) if end is None else end for end in ends))


def _ticking(node: nodes.For | nodes.Macro) -> nodes.Node:
    node.body.insert(0, nodes.ExprStmt(_ask("tick"), lineno=node.lineno))
    return node


def _ask(method: str, *arguments: nodes.Expr) -> nodes.Call:
    return nodes.Call(nodes.EnvironmentAttribute(method), list(arguments), [], None, None)


def _no_format(*_: Any, **__: Any) -> str:
    raise TemplateError("format is not there: write texts one behind the other, with ~")


def _size(operator: str, left: Any, right: Any) -> int:
    """Return how many characters or items the result of an operator has at most; 1 for numbers."""
    if operator == "%":
        if not isinstance(left, str):
            return 1
        if "*" in left or re.search(rf"\d{{{MAX_WIDTH_DIGITS}}}", left):
            raise TemplateError("a format with a width that is too large")
        widths = 10**MAX_WIDTH_DIGITS if re.search(r"\d", left) else 0
        return len(left) + left.count("%") * (weight(right) + widths)
    sizes = [len(side) if isinstance(side, Sequence) else abs(side) for side in (left, right)]
    if operator in {"*", "**"}:
        huge = sizes[0] * sizes[1] > MAX_TEXT or (operator == "**" and sizes[0] > 1 and sizes[1] > MAX_POWER)
        return MAX_TEXT + 1 if huge else int(sizes[0] * sizes[1])
    return sizes[0] + sizes[1] if isinstance(left, Sequence) else 1


def _counted(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """Have a filter count; what jinja2 marked it with, such as that it is given the context first, is kept."""
    skip = int(hasattr(function, "jinja_pass_arg"))

    @wraps(function)
    def call(*given: Any, **named: Any) -> Any:
        value, *others = given[skip:]
        rest = [*others, *named.values()]
        if name == "join":
            value = _listed(value)
            spend(len(value) * weight(rest))
        elif name == "replace" and rest:
            spend(str(value).count(str(named.get("old", rest[0]))) * weight(rest))
        elif name == "indent":
            spend((str(value).count("\n") + 1) * sum(each if isinstance(each, int) else weight(each) for each in rest))
        elif name == "sum" and not all(each is None or isinstance(each, (int, float, str)) for each in rest):
            raise TemplateError("it adds lists up")
        if name in WRITING_FILTERS:
            spend(weight(value))
        return _paid(function(*given[:skip], value, *others, **named))

    return call


def _listed(value: Any) -> Any:
    """Make a list of a generator, so that it can be weighed."""
    return value if isinstance(value, Collection) else list(value)


def _paid(value: Any) -> Any:
    spend(len(value) if isinstance(value, (str, list, tuple)) else 1)
    return value


def _written(value: Any) -> Any:
    spend(weight(value))
    return value
