"""Runs chat templates: a sandboxed Jinja environment that renders as transformers' does, within bounds.

A chat template is code that came with somebody's weights. The sandbox keeps it from the interpreter's internals; the
bounds keep it from the machine: no value may grow much larger than the conversation, all values together and the
processor time are limited, and everything that repeats (loops, calls, operators, filters) is counted. Nothing here
needs a signal or a second process, so it works in any thread.

`apply_chat_template` is not used: it copies and checks every conversation, which costs more than the rendering.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sized
from datetime import datetime
from typing import Any, cast

from jinja2 import StrictUndefined, TemplateError, meta, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context, LoopContext
from jinja2.sandbox import ImmutableSandboxedEnvironment, safe_range
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

from lamina.chat.bounds import (
    SHORT_LOOP,
    SMALL,
    TemplateFailure,
    budget,
    check_bits,
    formatted_size,
    guard,
    weigh,
)

# What today is for a template that insists on a date: a run must render tomorrow as it did today.
FIXED_DATE = datetime(2025, 1, 1)

MAX_SOURCE = 1_000_000

_DICT_ATTRIBUTES = frozenset(dir(dict))
_LOOP_ATTRIBUTES = frozenset(["first", "last", "index", "index0", "length", "previtem", "nextitem"])

# `random` and `lipsum` give another text each time; the others can be slow and no chat template has a use for them.
_REMOVED_FILTERS = ("random", "urlize", "xmlattr", "pprint", "wordwrap", "striptags")


class JinjaTemplate:
    """A compiled template."""

    def __init__(self, source: str) -> None:
        self._compile(source, _dated_environment() if needs_date(source) else _environment())

    def _compile(self, source: str, environment: _Sandbox) -> None:
        if len(source) > MAX_SOURCE:
            raise TemplateFailure(f"it has {len(source):,} characters; at most {MAX_SOURCE:,} are allowed")
        budget.start(len(source))
        self._globals = environment.globals
        try:
            self._template = environment.from_string(source)
        except TemplateFailure:
            raise
        except TemplateError as error:
            line = getattr(error, "lineno", None)
            raise TemplateFailure(f"{error}" + (f" (line {line})" if line else "")) from None
        except Exception as error:  # deep nesting and the like end in the Python compiler
            raise TemplateFailure(f"it cannot be compiled: {type(error).__name__}: {error}") from None

    def render(self, variables: dict[str, Any], characters: int) -> str:
        """The text.

        Args:
            variables: What the template sees: plain JSON values only.
            characters: How long the conversation is; the bounds grow with it.

        Raises:
            TemplateFailure: The template raises an error, or goes past its bounds.
        """
        template = self._template
        # `template.new_context` copies the globals key by key, which takes as long as a short conversation.
        context = Context(template.environment, {**self._globals, **variables}, template.name, template.blocks)
        budget.start(characters)
        room = budget.size
        parts: list[str] = []
        try:
            for part in template.root_render_func(context):
                room -= len(part)
                if room < 0:
                    budget.spend(budget.size + 1)
                parts.append(part)
        except TemplateFailure:
            raise
        except TemplateError as error:
            raise TemplateFailure(str(error)) from None
        except Exception as error:  # a template's own mistake can be any exception
            raise TemplateFailure(f"{type(error).__name__}: {error}") from None
        return "".join(parts)


class RowTemplate(JinjaTemplate):
    """A template over the columns of a row, as Jinja itself renders it: no block is trimmed, and what is absent fails.

    Attributes:
        names: The columns that it reads.
    """

    def __init__(self, source: str) -> None:
        environment = _row_environment()
        self._compile(source, environment)
        self.names = frozenset(meta.find_undeclared_variables(environment.parse(source)))

    def render_row(self, row: dict[str, Any]) -> str:
        """The text for a row.

        Raises:
            TemplateFailure: The row lacks a column, or the template raises an error or goes past its bounds.
        """
        columns = {name: row[name] for name in self.names if name in row}
        return self.render(columns, len(json.dumps(columns, ensure_ascii=False, default=str)))


@functools.lru_cache(maxsize=64)
def compile_template(source: str) -> JinjaTemplate:
    """The template of this text, compiled once.

    Raises:
        TemplateFailure: The text is no valid template.
    """
    return JinjaTemplate(source)


@functools.lru_cache(maxsize=64)
def variables_of(source: str) -> frozenset[str]:
    """What the template reads beside what it sets itself.

    Raises:
        TemplateFailure: The text is no valid template.
    """
    try:
        return frozenset(meta.find_undeclared_variables(_environment().parse(source)))
    except TemplateError as error:
        raise TemplateFailure(str(error)) from None


def mentions_date(source: str) -> bool:
    """Whether the template asks for the current date."""
    return "strftime_now" in source


def needs_date(source: str) -> bool:
    """Whether the template asks for the date without a value of its own for when there is none."""
    return mentions_date(source) and not re.search(r"strftime_now\s+is\s+(not\s+)?defined", source)


class _Sandbox(ImmutableSandboxedEnvironment):
    """The environment: what repeats or grows passes through a method of this class."""

    intercepted_binops = frozenset(["+", "*", "**", "%"])

    def _generate(self, source: nodes.Template, *args: Any, **kwargs: Any) -> str:
        return super()._generate(_Bounds().visit(source), *args, **kwargs)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "+":
            result = left + right
            if type(result) is str:
                if len(result) > SMALL:
                    budget.spend(len(result))
            elif isinstance(result, Sized):
                budget.spend(len(result))
            return result
        if operator == "**" and isinstance(left, int) and isinstance(right, int):
            check_bits(left.bit_length() * abs(right))
        elif operator == "*" and isinstance(left, int) and isinstance(right, int):
            check_bits(left.bit_length() + right.bit_length())
        elif operator == "*":
            text, count = (right, left) if isinstance(left, int) else (left, right)
            if isinstance(count, int):
                budget.spend(weigh(text) * max(count, 0))
        elif operator == "%" and isinstance(left, (str, bytes)):
            budget.spend(formatted_size(str(left), right))
        return self.binop_table[operator](left, right)

    def getattr(self, obj: Any, attribute: str) -> Any:
        # As the sandbox does, without the exception that each key of a message would cost.
        if type(obj) is dict and attribute in obj and attribute not in _DICT_ATTRIBUTES:
            return obj[attribute]
        if type(obj) is LoopContext and attribute in _LOOP_ATTRIBUTES:
            return getattr(obj, attribute)
        return super().getattr(obj, attribute)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        wrapped = super().wrap_str_format(value)
        if wrapped is None:
            return None

        def bounded(*args: Any, **kwargs: Any) -> str:
            budget.spend(formatted_size(value.__self__, [*args, *kwargs.values()]))
            return wrapped(*args, **kwargs)

        return bounded

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805
        budget.step()
        guard(getattr(__obj, "__name__", ""), getattr(__obj, "__self__", None), args, kwargs)
        return _stored(super().call(__context, __obj, *args, **kwargs))

    @staticmethod
    def concat(parts: Iterable[str]) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        parts = list(parts)
        budget.spend(sum(map(len, parts)))
        return "".join(parts)


class _Bounds(NodeTransformer):
    """Puts checks where a template loops, keeps a value, or joins some; the names hold a space so that none clashes."""

    def generic_visit(self, node: nodes.Node, *args: Any, **kwargs: Any) -> nodes.Node:
        super().generic_visit(node, *args, **kwargs)
        match node:
            case nodes.For():
                node.iter = _filter(node.iter, "loop over")
            case nodes.Assign():
                node.node = _filter(node.node, "keep value")
            case nodes.With():
                node.values = [_filter(value, "keep value") for value in node.values]
            case nodes.Concat():
                return _filter(nodes.List(node.nodes, lineno=node.lineno), "join values")
            case nodes.List() | nodes.Dict() | nodes.Tuple() if getattr(node, "ctx", "load") == "load":
                # Of constants alone it is no longer than the template.
                if next(node.find_all((nodes.Name, nodes.Call, nodes.Filter)), None) is not None:
                    return _filter(node, "keep value")
            case nodes.ScopedEvalContextModifier():
                raise TemplateFailure("{% autoescape %} has no place in a chat template")
        return node


class _Generation(Extension):
    """`{% generation %}...{% endgeneration %}`, with which some templates mark what the assistant writes."""

    tags = {"generation"}  # noqa: RUF012  as the class above declares it

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


class _Namespace(Namespace):
    """As Jinja's, without names that begin with an underscore."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        self, *rest = args
        values = dict(*rest, **kwargs)
        for name in values:
            _check_name(name)
        Namespace.__init__(self, values)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)

    def __repr__(self) -> str:
        return "<Namespace>"


class _Dict:
    """`dict` in templates: what makes one, and no more of the type."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args)


@functools.cache
def _environment() -> _Sandbox:
    environment = _Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols], cache_size=0)
    for name in _REMOVED_FILTERS:
        del environment.filters[name]
    environment.filters["tojson"] = _tojson
    for name, function in environment.filters.items():
        environment.filters[name] = _bounded(name, function)
    environment.filters |= {"loop over": _loop_over, "keep value": _stored, "join values": _join_values}
    environment.globals = {
        "range": safe_range,
        "dict": _Dict(),
        "namespace": _Namespace,
        "cycler": environment.globals["cycler"],
        "joiner": environment.globals["joiner"],
        "raise_exception": _raise_exception,
    }
    return environment


@functools.cache
def _row_environment() -> _Sandbox:
    options: Any = {"trim_blocks": False, "lstrip_blocks": False, "keep_trailing_newline": True}
    environment: Any = _environment().overlay(undefined=StrictUndefined, **options)
    environment.globals = _environment().globals
    return environment


@functools.cache
def _dated_environment() -> _Sandbox:
    environment: Any = _environment().overlay()
    environment.globals = _environment().globals | {"strftime_now": FIXED_DATE.strftime}
    return environment


def _raise_exception(message: str) -> None:
    raise TemplateError(message)


def _tojson(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _check_name(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a namespace cannot hold the name {name!r}, which begins with an underscore")


def _filter(node: nodes.Node, name: str) -> nodes.Filter:
    return nodes.Filter(cast(nodes.Expr, node), name, [], [], None, None, lineno=node.lineno)


def _bounded(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    has_context = hasattr(function, "jinja_pass_arg")

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        budget.step()
        first, rest = (args[1], args[2:]) if has_context else (args[0], args[1:])
        if name == "join" and not isinstance(first, Sized):
            first = list(first)
            args = (args[0], first, *rest) if has_context else (first, *rest)
        guard(name, first, rest, kwargs)
        return _stored(function(*args, **kwargs))

    return call


def _loop_over(values: Any) -> Any:
    """What a loop runs over; long ones are counted as they go, short ones at once."""
    budget.step()
    if (type(values) is list or isinstance(values, Sized)) and len(values) <= SHORT_LOOP:
        return values
    return _counted(cast(Iterable[Any], values))


def _counted(values: Iterable[Any]) -> Iterator[Any]:
    for value in values:
        budget.step()
        yield value


def _stored(value: Any) -> Any:
    if isinstance(value, str):
        if len(value) > SMALL:
            budget.spend(len(value))
    elif isinstance(value, (list, tuple, dict)):
        budget.spend(weigh(value))
    return value


def _join_values(values: list[Any]) -> str:
    budget.spend(weigh(values))
    return "".join(map(str, values))
