"""What has to be known of a command line before it is parsed: whether errors are to be JSON, and what is empty."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lamina.errors import ConfigError, Problem

JSON = "--json"
MAY_BE_EMPTY = ("--prompt", "-p", "--system")


def asks_for_json(command: Any, arguments: Sequence[str]) -> bool:
    """Whether `--json` stands where an option is, and is no option's value: that of `--prompt --json` is a prompt.

    With `--help` there is no result, so that the help is shown for people all the same.

    Args:
        command: What the arguments are of; a group's command takes over where it is named.
        arguments: Without the program's name.
    """
    left, found = list(arguments), False
    while left:
        argument = left.pop(0)
        if argument == "--":
            break
        if argument == "--help":
            return False
        if argument == JSON:
            found = True
        elif argument.startswith("-") and len(argument) > 1:
            if argument in _with_values(command):
                del left[:1]
        else:
            command = getattr(command, "commands", {}).get(argument, command)
    return found


def refuse_empty(command: Any, arguments: Sequence[str]) -> None:
    """Refuses arguments without a letter: a variable of the shell that was not set would name the working folder.

    A prompt may be empty, and so may a system turn.

    Raises:
        ConfigError: One is empty.
    """
    before = ""
    for argument in arguments:
        name, equals, value = argument.partition("=") if argument.startswith("--") else (argument, "", "")
        if not argument and before not in MAY_BE_EMPTY:
            where = before if before in _with_values(command) else "an argument"
            raise ConfigError(Problem(where, "is empty", "give a value, or leave it out"))
        if equals and not value and name in _with_values(command) and name not in MAY_BE_EMPTY:
            raise ConfigError(Problem(name, "is empty", "give a value, or leave it out"))
        if not argument.startswith("-"):
            command = getattr(command, "commands", {}).get(argument, command)
        before = argument


def _with_values(command: Any) -> set[str]:
    """The options of a command that take the argument after them; short ones may also have it in the same one."""
    options = [parameter for parameter in command.params if parameter.param_type_name == "option"]
    return {name for option in options if not option.is_flag for name in option.opts}
