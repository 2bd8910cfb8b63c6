"""Every command of the command line, by its name."""

from __future__ import annotations

from typing import Any

from typer.main import get_command

from lamina.cli.app import build


def _commands() -> dict[str, Any]:
    """Every command by its words: `train`, and `bench train` of the group `bench`."""
    found = {}
    for name, command in get_command(build()).commands.items():  # type: ignore[attr-defined]
        for word, member in getattr(command, "commands", {"": command}).items():
            found[f"{name} {word}".strip()] = member
    return found


COMMANDS = _commands()
