"""Command lines that start a training: `accelerate launch sft.py --learning_rate 1e-4`, `trl sft`, `llamafactory-cli
train`, alone or in a shell script."""

from __future__ import annotations

import contextlib
import itertools
import json
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from lamina.config.yaml_text import parse_scalar

_ASSIGNED = re.compile(r"\s*(?:export\s+)?([A-Za-z_]\w*)=(.*)")
_VARIABLE = re.compile(r"\$\{?([A-Za-z_]\w*)(?::-([^}]*))?\}?")

# Parts of a shell's line. Quotes, escapes and substitutions come first, so that an operator in them is none. A number
# belongs to a redirection only where it is a word of its own: `--epochs 2 >log`, but `2>log`.
_PIECE = re.compile(
    r"""
    (?P<text> \\. | '[^']*' | "(?:\\.|[^"\\])*" | `[^`]*` | \$\{[^}]*\} | \$\((?:[^()]|\((?:[^()]|\([^()]*\))*\))*\) )
    | (?P<comment> (?<!\S) \#.* )
    | (?P<redirection>
        (?: (?<!\S)\d+ )? (?: &>>? | <<<? -? | >> | >\| | <> | [<>]&? ) [ \t]*
        (?: [<>]\([^()]*\) | (?: \\. | '[^']*' | "(?:\\.|[^"\\])*" | [^\s;&|<>'"\\] )+ )
      )
    | (?P<operator> && | \|\|? &? | ;+ | & )
    | (?P<other> . )
    """,
    re.VERBOSE,
)

# Words before a command that leave it as it is.
_BEFORE = ("do", "then", "else", "{", "(", "!", "time", "nohup", "exec", "env")

# Launchers with options of their own, which stand before the script.
_LAUNCHERS = ("accelerate", "torchrun", "deepspeed", "python", "python3")
_YAML = (".yaml", ".yml", ".json")


@dataclass(frozen=True)
class Command:
    """A command that starts a training.

    Attributes:
        values: Its settings by name, as a YAML file would have them.
        config: The YAML file that it names; empty if there is none.
        words: The words before its settings, such as `trl` and `dpo`.
    """

    values: dict[str, Any]
    config: str = ""
    words: tuple[str, ...] = field(default=())


def find_command(source: str | Sequence[str]) -> Command | None:
    """Returns the command with the most settings in a shell script or in words; None if there is none."""
    if not isinstance(source, str):
        found = find_commands(source[0]) if len(source) == 1 else [_command(list(source))]
    else:
        found = find_commands(source)
    usable = [command for command in found if command.values or command.config]
    return max(usable, key=lambda command: (len(command.values), bool(command.config)), default=None)


def find_commands(script: str) -> list[Command]:
    """Returns every command with settings in a shell script."""
    found = [_command(words) for words in _split(script)]
    return [command for command in found if command.values or command.config]


def _split(script: str) -> list[list[str]]:
    """Splits a script into words, with its own variables filled in."""
    variables: dict[str, str] = {}
    commands: list[list[str]] = []
    for part in (part for line in script.replace("\\\n", " ").splitlines() for part in _parts(line)):
        text = _VARIABLE.sub(lambda match: variables.get(match[1], match[2] or match[0]), part)
        assigned = _ASSIGNED.fullmatch(text)
        try:
            words = shlex.split(text, comments=True)
        except ValueError:
            continue
        if assigned and words and words[-1].startswith(f"{assigned[1]}="):
            variables[assigned[1]] = words[-1].partition("=")[2]
        elif words:
            commands.append(words)
    return commands


def _parts(line: str) -> list[str]:
    """Returns the commands of one line: what operators such as `&&` and `|` divide, without redirections.

    >>> _parts("cd x && trl sft --config a.yaml 2>&1 | tee 'a|b'")
    ['cd x', 'trl sft --config a.yaml', "tee 'a|b'"]
    """
    parts = [""]
    for piece in _PIECE.finditer(line):
        if piece["operator"]:
            parts.append("")
        elif piece["redirection"]:
            parts[-1] += " "
        elif not piece["comment"]:
            parts[-1] += piece[0]
    return [part.strip() for part in parts]


def _command(words: Sequence[str]) -> Command:
    processes = _processes(words)
    words = _after_launcher(list(words))
    first = next((number for number, word in enumerate(words) if word.startswith("--")), len(words))
    before = words[:first]
    values = _settings(words[first:])
    if values and processes > 1:
        values["num_processes"] = processes
    config = values.pop("config", values.pop("config_file", ""))
    named = next((word for word in before if word.endswith(_YAML)), "")
    parts = [part for word in before for part in re.split(r"[\W_]+", word.lower()) if part]
    if not values and not named and not any(word.endswith(_YAML) for word in (str(config),)):
        return Command({})
    return Command(values, str(config or named), tuple(parts))


def _processes(words: Sequence[str]) -> int:
    """Returns how many processes a launcher starts, if it says so."""
    for name, value in itertools.pairwise(word for part in words for word in part.split("=", 1)):
        if name in ("--num_processes", "--nproc_per_node", "--nproc-per-node") and value.isdigit():
            return int(value)
    return 1


def _after_launcher(words: list[str]) -> list[str]:
    """Removes a launcher and its options: everything before the script that it starts."""
    # Variables of the command's environment have a `=`.
    while words and (words[0] in _BEFORE or ("=" in words[0] and not words[0].startswith("-"))):
        words = words[1:]
    if words and words[0].rpartition("/")[2] in _LAUNCHERS:
        script = next((n for n, word in enumerate(words) if word.endswith(".py") and not word.startswith("-")), None)
        return words[script:] if script is not None else words
    return words


def _settings(words: Sequence[str]) -> dict[str, Any]:
    settings: dict[str, Any] = {}
    name = ""
    for word in words:
        if word.startswith("--"):
            name, equals, text = word[2:].partition("=")
            name = name.replace("-", "_")  # of the name alone: a value such as `trl-lib/rows` has hyphens of its own
            settings[name] = parse_scalar(text) if equals else True
            if not equals and name.startswith("no_") and name != "no_cuda":  # how transformers' parser says false
                name = name.removeprefix("no_")
                settings.pop(f"no_{name}")
                settings[name] = False
        elif name:
            value = parse_scalar(word)
            if settings[name] is True:
                settings[name] = value
            else:  # several words: a list
                earlier = settings[name]
                settings[name] = [*earlier, value] if isinstance(earlier, list) else [earlier, value]
    return {name: _read(value) for name, value in settings.items()}


def _read(value: Any) -> Any:
    """Returns a value of Python's or JSON's form as what it stands for."""
    if not isinstance(value, str):
        return value
    if value[:1] in "{[" and value:
        with contextlib.suppress(ValueError):
            return json.loads(value)
    return {"True": True, "False": False, "None": None}.get(value, value)
