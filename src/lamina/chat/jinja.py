"""Renders chat templates like transformers does: in a sandboxed Jinja environment, with resource limits.

A chat template is code that comes with someone else's model. The sandbox keeps it away from the interpreter's
internals. The limits protect the machine: no value may become much larger than the conversation, the total size of all
values and the processor time are limited, and everything that repeats (loops, calls, operators, filters) is counted.
None of it needs a signal or a second process, so it works in any thread.

`apply_chat_template` is not used, because it copies and checks every conversation, which costs more than the rendering.
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

# The date that templates get: a run must render tomorrow as it did today.
FIXED_DATE = datetime(2025, 1, 1)

MAX_SOURCE = 1_000_000

_DICT_ATTRIBUTES = frozenset(dir(dict))
_LOOP_ATTRIBUTES = frozenset(["first", "last", "index", "index0", "length", "previtem", "nextitem"])

# `random` and `lipsum` produce a different text each time. The others can be slow, and no chat template needs them.
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
        except Exception as error:  # deep nesting, for example, fails in the Python compiler
            raise TemplateFailure(f"it cannot be compiled: {type(error).__name__}: {error}") from None

    def render(self, variables: dict[str, Any], characters: int) -> str:
        """Renders the template.

        Args:
            variables: The template's variables, as plain JSON values.
            characters: The length of the conversation; the limits grow with it.

        Raises:
            TemplateFailure: The template raises an error or exceeds its limits.
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
        except Exception as error:  # an error in a template can raise any exception
            raise TemplateFailure(f"{type(error).__name__}: {error}") from None
        return "".join(parts)


class RowTemplate(JinjaTemplate):
    """A template over the columns of a row, with Jinja's default whitespace handling. A missing column is an error; a
    null is empty text, as a cell of a CSV file is, but `is none` still finds it.

    Attributes:
        names: The columns that it reads.
    """

    def __init__(self, source: str) -> None:
        environment = _row_environment()
        self._compile(source, environment)
        self.names = frozenset(meta.find_undeclared_variables(environment.parse(source)))

    def render_row(self, row: dict[str, Any]) -> str:
        """Renders the template for a row.

        Raises:
            TemplateFailure: The row lacks a column, or the template raises an error or exceeds its limits.
        """
        columns = {name: _NULL if row[name] is None else row[name] for name in self.names if name in row}
        return self.render(columns, len(json.dumps(columns, ensure_ascii=False, default=str)))


@functools.lru_cache(maxsize=64)
def compile_template(source: str) -> JinjaTemplate:
    """Returns the compiled template; compiles each text only once.

    Raises:
        TemplateFailure: The text is not a valid template.
    """
    return JinjaTemplate(source)


@functools.lru_cache(maxsize=64)
def variables_of(source: str) -> frozenset[str]:
    """Returns the variables that the template reads and does not set itself.

    Raises:
        TemplateFailure: The text is not a valid template.
    """
    try:
        return frozenset(meta.find_undeclared_variables(_environment().parse(source)))
    except TemplateError as error:
        raise TemplateFailure(str(error)) from None


def mentions_date(source: str) -> bool:
    """Returns whether the template asks for the current date."""
    return "strftime_now" in source


def needs_date(source: str) -> bool:
    """Returns whether the template asks for the date and has no fallback for when it is not available."""
    return mentions_date(source) and not re.search(r"strftime_now\s+is\s+(not\s+)?defined", source)


class _Sandbox(ImmutableSandboxedEnvironment):
    """The environment. Everything that repeats or grows goes through a method of this class."""

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
        # As in the base class, but without the exception that it raises internally for each key of a message.
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
    """Adds checks where a template loops, stores or joins values, as filters whose names have a space to be unique."""

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
                # A literal of constants only is no longer than the template.
                if next(node.find_all((nodes.Name, nodes.Call, nodes.Filter)), None) is not None:
                    return _filter(node, "keep value")
            case nodes.ScopedEvalContextModifier():
                raise TemplateFailure("{% autoescape %} is not allowed in a chat template")
        return node


class _Generation(Extension):
    """`{% generation %}...{% endgeneration %}`, with which some templates mark the assistant's text."""

    tags = {"generation"}  # noqa: RUF012  as declared in the base class

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


class _Namespace(Namespace):
    """Jinja's namespace, without names that start with an underscore."""

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
    """`dict` in templates: its constructors only."""

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
    environment.tests = {**environment.tests, "none": lambda value: value is None or value is _NULL}
    return environment


class _Null(str):
    """The empty text that a null column is in a row's template: filters such as `trim` would write `None`."""

    __slots__ = ()


_NULL = _Null()


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
        raise SecurityError(f"a namespace cannot contain the name {name!r}, which starts with an underscore")


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
    """Returns the values of a loop, and counts its iterations: one by one in a long loop, at once in a short one."""
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
