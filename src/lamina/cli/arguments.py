"""Whether a command line asks for JSON, known before it is parsed: what cannot be parsed is an error in JSON, too."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

JSON = "--json"


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


def _with_values(command: Any) -> set[str]:
    """The options of a command that take the argument after them; short ones may also have it in the same one."""
    options = [parameter for parameter in command.params if parameter.param_type_name == "option"]
    return {name for option in options if not option.is_flag for name in option.opts}
