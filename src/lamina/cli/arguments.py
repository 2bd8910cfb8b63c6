"""Inspects a command line before it is parsed: whether errors must be JSON, which arguments are empty, and whether
the working directory can be named."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Any

from lamina.errors import ConfigError, Problem

# Set by the completion script when a shell asks for completions.
COMPLETE_VARIABLE = "_LAMINA_COMPLETE"
JSON = "--json"
HELP = ("--help", "-h")
MAY_BE_EMPTY = ("--prompt", "-p", "--system")


def asks_for_json(command: Any, arguments: Sequence[str]) -> bool:
    """Returns whether `--json` is given as an option; in `--prompt --json`, it is a prompt.

    Returns False with `--help`, which has no result and always prints text.

    Args:
        command: The command that the arguments are for; a subcommand named in them replaces it.
        arguments: The arguments, without the program's name.
    """
    left, found = list(arguments), False
    while left:
        argument = left.pop(0)
        if argument == "--":
            break
        if argument in HELP:
            return False
        if argument == JSON:
            found = True
        elif argument.startswith("-") and len(argument) > 1:
            if argument in options_with_values(command):
                del left[:1]
        else:
            command = getattr(command, "commands", {}).get(argument, command)
    return found


def refuse_empty(command: Any, arguments: Sequence[str]) -> None:
    """Refuses empty arguments: an unset shell variable would stand for the working directory.

    A prompt may be empty, and so may a system message.

    Raises:
        ConfigError: An argument is empty.
    """
    before = ""
    for argument in arguments:
        name, equals, value = argument.partition("=") if argument.startswith("--") else (argument, "", "")
        if not argument and before not in MAY_BE_EMPTY:
            where = before if before in options_with_values(command) else "an argument"
            raise ConfigError(Problem(where, "is empty", "give a value, or remove it"))
        if equals and not value and name in options_with_values(command) and name not in MAY_BE_EMPTY:
            raise ConfigError(Problem(name, "is empty", "give a value, or remove it"))
        if not argument.startswith("-"):
            command = getattr(command, "commands", {}).get(argument, command)
        before = argument


def refuse_undecoded_folder() -> None:
    """Refuses a working directory whose path this process cannot decode: it could be written into no file.

    Raises:
        ConfigError: The path has bytes that the file system's encoding lacks.
    """
    try:
        folder = os.getcwd()  # noqa: PTH109 - a text, without a check of the file system
        folder.encode("utf-8")
    except FileNotFoundError:  # it was deleted; what needs it says so
        return
    except UnicodeEncodeError:
        message = f"its path cannot be read as {sys.getfilesystemencoding()}, which this process uses for paths"
        fix = "set PYTHONUTF8=1, or a UTF-8 locale such as LC_ALL=C.UTF-8"
        raise ConfigError(Problem("the working directory", message, fix)) from None


def options_with_values(command: Any) -> set[str]:
    """Returns the options of a command that take a value."""
    options = [parameter for parameter in command.params if parameter.param_type_name == "option"]
    return {name for option in options if not option.is_flag for name in option.opts}
