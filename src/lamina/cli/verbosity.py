"""`--quiet`, `--log-level` and `--timestamps`, which every command takes anywhere on its line."""

from __future__ import annotations

import os
from collections.abc import Collection
from typing import Any

from lamina.cli.arguments import options_with_values
from lamina.cli.output import LEVELS, err
from lamina.errors import ConfigError, Problem, nearest

LEVEL_VARIABLE = "LAMINA_LOG_LEVEL"
TIMESTAMPS_VARIABLE = "LAMINA_TIMESTAMPS"

QUIET, LEVEL, TIMESTAMPS = "--quiet", "--log-level", "--timestamps"


def set_verbosity(command: Any, arguments: list[str]) -> list[str]:
    """Sets how much goes to stderr, from the arguments and the environment.

    Args:
        command: The command that the arguments are for.
        arguments: The arguments, without the program's name.

    Returns:
        The arguments without these options.

    Raises:
        ConfigError: There is no such level.
    """
    level, where = os.environ.get(LEVEL_VARIABLE, ""), LEVEL_VARIABLE
    stamps = os.environ.get(TIMESTAMPS_VARIABLE, "") not in ("", "0")
    kept: list[str] = []
    left = list(arguments)
    while left:
        argument = left.pop(0)
        name, equals, value = argument.partition("=")
        if argument == "--":
            kept += [argument, *left]
            break
        if kept and kept[-1] in _values_after(command, kept):
            kept.append(argument)
        elif argument == QUIET:
            level, where = "warning", QUIET
        elif argument == TIMESTAMPS:
            stamps = True
        elif name == LEVEL:
            if not equals and not left:
                raise ConfigError(Problem(LEVEL, "needs a value", f"give one of {', '.join(LEVELS)}"))
            level, where = value if equals else left.pop(0), LEVEL
        else:
            kept.append(argument)
    err.level, err.timestamps = _checked(level, where), stamps
    return kept


def _checked(level: str, where: str) -> str:
    level = level.lower() or "info"
    if level not in LEVELS:
        hint = nearest(level, LEVELS)
        raise ConfigError(Problem(where, f"{level!r} is not one of {', '.join(LEVELS)}", hint))
    return level


def _values_after(command: Any, before: list[str]) -> Collection[str]:
    """The options that take a value, of the command that the words before have named."""
    for word in before:
        command = getattr(command, "commands", {}).get(word, command)
    return options_with_values(command)
