"""Reads YAML as plain data: `2e-4` is a number, and a duplicate key is an error."""

from __future__ import annotations

import itertools
import re
from collections.abc import Hashable, Sequence
from typing import Any

import yaml

from lamina.errors import ConfigError, Problem

_QUOTED = re.compile(r"""'[^']*'|"(?:\\.|[^"\\])*\"""")
_VARIABLE = re.compile(r"[^\s,{}\[\]]*\$\{[^}]*\}[^\s,{}\[\]]*")


class _Loader(yaml.SafeLoader):
    """SafeLoader with YAML 1.2 floats and no duplicate keys."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable):
                raise yaml.constructor.ConstructorError(None, None, "a key must be a plain scalar", key_node.start_mark)
            if key in seen:
                line = key_node.start_mark.line + 1
                raise ConfigError(Problem(str(key), f"appears twice (again on line {line})", "keep one of them"))
            seen.add(key)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:[0-9][0-9_]*(?:\.[0-9_]*)?|\.[0-9]+)[eE][-+]?[0-9]+$"),
    list("-+.0123456789"),
)


def parse_yaml(text: str, source: str) -> Any:
    """Parses YAML into plain data.

    Raises:
        ConfigError: The text is not valid YAML, or has a duplicate key; the error names `source`.
    """
    try:
        return yaml.load(text, Loader=_Loader)  # a SafeLoader: builds plain data only
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        if isinstance(error, ConfigError):
            raise
        mark = getattr(error, "problem_mark", None)
        where = f" (line {mark.line + 1}, column {mark.column + 1})" if mark else ""
        reason = getattr(error, "problem", None) or str(error)
        fix = _quotes_around_variable(text.splitlines()[mark.line : mark.line + 1]) if mark else ""
        raise ConfigError(Problem("config", f"{source} is not valid YAML{where}: {reason}", fix)) from None


def _quotes_around_variable(lines: Sequence[str]) -> str:
    """Returns the fix of a line with `{steps: ${STEPS:-2}}`, where YAML takes the variable's brace for a mapping."""
    found = next((match[0] for line in lines if (match := _VARIABLE.search(_QUOTED.sub("", line)))), "")
    return f"within braces and brackets, put quotes around a variable: '{found}'" if found else ""


def parse_scalar(text: str) -> Any:
    """Parses a single YAML scalar, and takes all other syntax literally: `a #b` and `a: b` stay unchanged."""
    loader = _Loader("")
    tag = loader.resolve(yaml.ScalarNode, text, (True, False))
    try:
        return loader.construct_object(yaml.ScalarNode(tag, text))
    except (ValueError, yaml.YAMLError):  # such as February 31, or `=`
        return text


def comment_in(text: str) -> str:
    """Returns the first comment in a YAML text; empty if there is none."""
    try:
        for before, after in itertools.pairwise(yaml.scan(text)):
            between = text[before.end_mark.index : after.start_mark.index]
            if "#" in between:
                return between[between.index("#") :].splitlines()[0]
    except yaml.YAMLError:
        pass
    return ""
