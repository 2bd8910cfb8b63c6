"""Writes the pages of `docs/` that are generated: both references, and the index of decisions.

Nothing in those pages is written by hand. Commands, options and their help come from typer's application; sections,
settings, types, bounds, defaults and descriptions come from the classes of `lamina.config`; the index has the title,
date and first sentence of each page in `docs/decisions`. `make reference` renews the pages, and a test fails where
they differ from what this file would write.

    python tools/reference.py            # write the pages
    python tools/reference.py --check    # write nothing; exit with 1 if a page is out of date
"""

from __future__ import annotations

import argparse
import html
import inspect
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from annotated_types import Ge, Gt, Le, Lt, MinLen
from pydantic import BaseModel, StringConstraints
from pydantic.fields import FieldInfo
from typer.main import get_command

from lamina.cli.app import build
from lamina.config import DEFAULT_METHOD, METHOD_CONFIGS, Config, MethodConfig
from lamina.config.section import describe_fields

DOCS = Path(__file__).resolve().parents[1] / "docs"
GENERATED = "<!-- Written by `make reference`. Edit the source, not this page. -->\n"

_WORDS: dict[Any, str] = {
    str: "text",
    int: "integer",
    float: "number",
    bool: "boolean",
    Path: "path",
    NoneType: "null",
    Any: "anything",
}
_HUGE = 2**31  # bounds beyond this are those of a 64-bit seed, which nobody runs into


def main() -> int:
    """Writes the pages, or with `--check` compares them; returns the exit code."""
    parser = argparse.ArgumentParser(description="Writes the generated pages of docs/.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 where a page is out of date")
    check = parser.parse_args().check
    missing = undescribed()
    for name in missing:
        sys.stderr.write(f"{name} has no description\n")
    stale = [name for name, text in pages().items() if _stored(name) != text]
    if check:
        for name in stale:
            sys.stderr.write(f"docs/{name} is out of date; run `make reference`\n")
        return int(bool(stale or missing))
    for name, text in pages().items():
        (DOCS / name).write_text(text, encoding="utf-8")
    return int(bool(missing))


def pages() -> dict[str, str]:
    """Each generated page by its path in `docs`."""
    return {
        "reference/cli.md": cli_page(),
        "reference/config.md": config_page(),
        "decisions/README.md": decisions_page(),
    }


def undescribed() -> list[str]:
    """Settings, sections, commands and options without a description."""
    settings = [
        f"{cls.__name__}.{name}"
        for cls, _ in [*_sections(Config, ""), *((cls, "method") for cls in METHOD_CONFIGS.values())]
        for name in cls.model_fields
        if not describe_fields(cls).get(name)
    ]
    commands = [name for name, command in _commands(get_command(build()), "lamina") if not command.help]
    options = [
        f"{name} {_label(parameter)}"
        for name, command in _commands(get_command(build()), "lamina")
        for parameter in command.params
        if not parameter.help and parameter.name != "help"
    ]
    return settings + commands + options


def _stored(name: str) -> str | None:
    path = DOCS / name
    return path.read_text(encoding="utf-8") if path.exists() else None


# The command line


def cli_page() -> str:
    """The reference of the command line: a section for each command, in the order of `lamina --help`."""
    root = get_command(build())
    commands = [(name, command) for name, command in _commands(root, "lamina") if not hasattr(command, "commands")]
    lines = [
        "# Command-line reference",
        "",
        GENERATED,
        "Exit codes: 0 done, 1 failed, 2 usage or configuration, 75 interrupted (the message says how to go on). Every",
        "command takes `--help`; with `--json`, stdout gets exactly one JSON object.",
        "",
        *_table(
            ("command", "what it does"),
            [(f"[`{name}`](#{_anchor(name)})", _one_line(command.help)) for name, command in commands],
        ),
    ]
    for name, command in commands:
        lines += ["", *_command_section(name, command)]
    return "\n".join(lines) + "\n"


def _commands(command: Any, name: str) -> Iterator[tuple[str, Any]]:
    """A command with its full name, and those below it."""
    yield name, command
    for child, below in getattr(command, "commands", {}).items():
        yield from _commands(below, f"{name} {child}")


def _command_section(name: str, command: Any) -> list[str]:
    types = get_type_hints(inspect.unwrap(command.callback), include_extras=True)
    arguments = [p for p in command.params if p.param_type_name == "argument"]
    options = [p for p in command.params if p.param_type_name == "option" and p.name != "help"]
    required = [f"{p.opts[0]} {_value(types[p.name])}" for p in options if p.required]
    usage = " ".join([name, *map(_label, arguments), *required, *(["[OPTIONS]"] if options else [])])
    lines = [f"## {name}", "", _one_line(command.help), "", "```", usage, "```"]
    if arguments:
        rows = [(f"`{_label(p)}`", "required" if p.required else "optional", _one_line(p.help)) for p in arguments]
        lines += ["", *_table(("argument", "", "what it is"), rows)]
    if options:
        rows = [
            (", ".join(f"`{n}`" for n in p.opts), *_option_type(p, types[p.name]), _one_line(p.help)) for p in options
        ]
        lines += ["", *_table(("option", "type", "default", "what it does"), rows)]
    return lines


def _label(parameter: Any) -> str:
    """How a parameter is written: an option's name, an argument's placeholder."""
    if parameter.param_type_name == "option":
        return parameter.opts[0]
    return parameter.metavar or parameter.name.upper()


def _value(hint: Any) -> str:
    word = readable(hint).split(",")[0].removesuffix(" or null")
    return {"path": "PATH", "integer": "N", "number": "X"}.get(word, "TEXT")


def _option_type(parameter: Any, hint: Any) -> tuple[str, str]:
    """The type and the default of an option, as cells of a table."""
    if parameter.is_flag:
        return "flag", "`true`" if parameter.default else "off"
    low, high = parameter.min, parameter.max
    bounds = ([f"at least {low:g}"] if low is not None else []) + (
        [f"at most {high:g}"] if high is not None and high < _HUGE else []
    )
    word = readable(hint).removesuffix(" or null")
    if parameter.multiple:
        word = word.removeprefix("list of ") + ", repeatable"
    if parameter.required:
        return _bounded(word, bounds), "required"
    return _bounded(word, bounds), "" if parameter.default is None else f"`{_yaml(parameter.default)}`"


# The configuration


def config_page() -> str:
    """The reference of the configuration: a section for each of its sections and each method."""
    lines = [
        "# Configuration reference",
        "",
        GENERATED,
        "A run is one YAML file with these sections. Every setting may also be given on the command line as",
        "`section.setting=value`. Types are strict: a number in quotes is not a number. An unknown key is an error.",
        "`lamina schema` prints the same as a JSON Schema.",
    ]
    for cls, path in _sections(Config, ""):
        lines += ["", f"## {_heading(cls, path)}", "", _one_line(inspect.getdoc(cls)), ""]
        lines += _settings(cls)
    lines += [
        "",
        "## `method`",
        "",
        f"`type` selects the method and thereby the other settings; without it the method is `{DEFAULT_METHOD}`.",
        "[The methods](../methods/README.md) have a page each with the mathematics.",
    ]
    for name, cls in METHOD_CONFIGS.items():
        facts = f"Source: {cls.paper}. Default learning rate: {cls.learning_rate:g}."
        own = f"### `method: {{type: {name}}}`"
        lines += ["", own, "", f"{_one_line(inspect.getdoc(cls))} {facts}", "", *_settings(cls)]
        for inner, path in _sections(cls, f"method.{name}"):
            if inner is not cls and name == _first_with(inner):
                lines += ["", f"#### `{path.replace(f'.{name}', '')}`", "", _one_line(inspect.getdoc(inner)), ""]
                lines += _settings(inner)
    return "\n".join(lines) + "\n"


def _heading(cls: type[BaseModel], path: str) -> str:
    """A section's path; where a section is one of several kinds, with the kind."""
    kind = cls.model_fields.get("type")
    name = "" if kind is None or kind.is_required() else f": {{type: {kind.default}}}"
    return f"`{path}{name}`" if path else "Top level"


def _first_with(inner: type[BaseModel]) -> str:
    """The first method that has that section, so that it is described once."""
    return next(n for n, cls in METHOD_CONFIGS.items() if any(inner in _models(f) for f in cls.model_fields.values()))


def _sections(cls: type[BaseModel], path: str) -> Iterator[tuple[type[BaseModel], str]]:
    """A section's class with its dotted path, and those below it; methods are left to their own part of the page."""
    yield cls, path
    for name, field in cls.model_fields.items():
        for model in _models(field):
            if not issubclass(model, MethodConfig):
                yield from _sections(model, f"{path}.{name}".removeprefix("."))


def _models(field: FieldInfo) -> list[type[BaseModel]]:
    """The configuration classes in a field's type, at any depth."""

    def within(hint: Any) -> Iterator[type[BaseModel]]:
        if isinstance(hint, type) and issubclass(hint, BaseModel):
            yield hint
        for inner in get_args(hint) if get_origin(hint) is not Literal else ():
            yield from within(inner)

    return list(within(field.annotation))


def _settings(cls: type[BaseModel]) -> list[str]:
    rows, texts = [], describe_fields(cls)
    for name, field in cls.model_fields.items():
        if name == "type" and issubclass(cls, MethodConfig):
            continue  # the heading says it
        rows.append((f"`{name}`", _field_type(field), _default(field), _one_line(texts.get(name))))
    return _table(("setting", "type", "default", "what it does"), rows) if rows else ["It has no settings of its own."]


def _field_type(field: FieldInfo) -> str:
    models = _models(field)
    if models and all(issubclass(model, MethodConfig) for model in models):
        return "[a method's section](#method)"
    return _bounded(readable(field.annotation), _bounds(field.metadata))


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if isinstance(value, MethodConfig):
        return f"`{{type: {value.type}}}`"
    return "its own defaults" if isinstance(value, BaseModel) else f"`{_yaml(value)}`"


def readable(hint: Any) -> str:
    """A type in words, with its bounds.

    >>> readable(Literal["auto", "drop"] | None)
    '`auto`, `drop` or null'
    >>> readable(dict[str, int] | list[bool])
    'mapping of text to integer, or list of boolean'
    """
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return _bounded(readable(inner[0]), _bounds(inner[1:]))
    if origin is Literal:
        return _or([f"`{_yaml(value)}`" for value in inner])
    if origin in (Union, UnionType):
        words = [word for each in inner for word in _members(each)]
        return _or(words)
    if origin is list:
        return f"list of {readable(inner[0])}"
    if origin in (dict, Mapping):
        return f"mapping of {readable(inner[0])} to {readable(inner[1])}"
    if isinstance(hint, type) and issubclass(hint, BaseModel):
        return "section"
    return _WORDS.get(hint) or getattr(hint, "__name__", str(hint))


def _members(hint: Any) -> list[str]:
    """Each choice of a union's member by itself, so that `or` stands once."""
    return [f"`{_yaml(value)}`" for value in get_args(hint)] if get_origin(hint) is Literal else [readable(hint)]


def _or(words: list[str]) -> str:
    comma = "," if any(" to " in word or " or " in word for word in words) else ""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])}{comma} or {words[-1]}"


def _bounded(word: str, bounds: list[str]) -> str:
    return f"{word} ({', '.join(bounds)})" if bounds else word


def _bounds(metadata: Any) -> list[str]:
    """Bounds in words."""
    said: list[tuple[type, Callable[[Any], str | None]]] = [
        (Ge, lambda m: f"at least {m.ge:g}"),
        (Gt, lambda m: f"more than {m.gt:g}"),
        (Le, lambda m: f"at most {m.le:g}"),
        (Lt, lambda m: f"less than {m.lt:g}" if m.lt < _HUGE else None),
        (MinLen, lambda m: "not empty"),
        (StringConstraints, lambda m: "not empty" if m.min_length else None),
    ]
    each = [m for entry in metadata for m in (entry.metadata if isinstance(entry, FieldInfo) else [entry])]
    words = [say(m) for m in each for kind, say in said if isinstance(m, kind)]
    return [word for word in words if word]


def _yaml(value: Any) -> str:
    """A plain value as it is written in YAML."""
    if value is None or isinstance(value, bool):
        return str(value).lower().replace("none", "null")
    return f"{value:g}" if isinstance(value, float) else str(value)


# The decisions


@dataclass(frozen=True)
class Decision:
    """A page of `docs/decisions`: `# Title`, a line `YYYY-MM-DD · area`, and what was decided in one paragraph."""

    file: str
    title: str
    date: str
    area: str
    summary: str


def decisions() -> list[Decision]:
    """Every decision in the order of its number.

    Raises:
        ValueError: A page does not begin as a decision does.
    """
    found = []
    for path in sorted((DOCS / "decisions").glob("[0-9]*.md")):
        page = re.match(r"# (.+)\n\n(\d{4}-\d\d-\d\d) · (.+)\n\n((?:(?!#).+\n)+)", path.read_text(encoding="utf-8"))
        if page is None:
            raise ValueError(f"{path.name} does not begin with `# Title`, `YYYY-MM-DD · area` and a paragraph")
        found.append(Decision(path.name, page[1], page[2], page[3], _one_line(page[4])))
    return found


def decisions_page() -> str:
    """The index of `docs/decisions`."""
    rows = [
        (f"[{each.file[:4]}]({each.file})", each.date, each.area, f"**{each.title}.** {each.summary}")
        for each in decisions()
    ]
    lines = [
        "# Decisions",
        "",
        GENERATED,
        "Why things are as they are, and what was tried and did not work: one page per decision. Figures are from a",
        "2-core machine with AVX512-BF16 and AMX unless a page says otherwise.",
        "",
        "To add one, write `NNNN-short-name.md` with the next number: a title, a line `YYYY-MM-DD · area`, one",
        "sentence for what was decided, then the reasons, the figures, and what was tried. `make reference` renews",
        "this index.",
        "",
        *_table(("", "date", "area", "decision"), rows),
    ]
    return "\n".join(lines) + "\n"


# Markdown


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> list[str]:
    cells = [[_cell(text) for text in row] for row in rows]
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *cells)]


def _cell(text: str) -> str:
    """Text in a table, with its bars as HTML: in code, an escaped bar is shown with its backslash by MkDocs."""
    text = re.sub(r"`([^`]*\|[^`]*)`", lambda code: f"<code>{html.escape(code[1])}</code>", text)
    return text.replace("|", "&#124;")


def _one_line(text: str | None) -> str:
    return " ".join(re.sub(r"\\\[", "[", text or "").split())


def _anchor(heading: str) -> str:
    return re.sub(r"[^\w-]+", "-", heading.lower()).strip("-")


if __name__ == "__main__":
    sys.exit(main())
