"""Translates a file or a command line of another library into a configuration of lamina."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lamina.dialects.recognize import TITLES, recognize
from lamina.errors import ConfigError, Problem
from lamina.migration import axolotl, llama_factory, trl
from lamina.migration.arguments import Command, find_command
from lamina.migration.draft import Draft, Translation
from lamina.migration.foreign import SUFFIXES, read_mapping

# What stands for a command line in messages.
ARGUMENTS = "the arguments"

_READERS = {"axolotl": axolotl.read, "llama-factory": llama_factory.read, "trl": trl.read}


def translate(source: str | Path | Sequence[str] | Command) -> Translation:
    """Translates a configuration of Axolotl, LLaMA-Factory or TRL.

    Args:
        source: A YAML or JSON file, a shell script that starts a training, or the words of a command line, or what
            `arguments.find_commands` made of them.

    Returns:
        The translation; `check` refuses it if settings were lost.

    Raises:
        ConfigError: It cannot be read, or it is of none of these libraries.
    """
    if isinstance(source, Command):
        return _of_command(source, Path(), ARGUMENTS)
    if isinstance(source, (str, Path)):
        path = Path(source)
        if path.suffix in SUFFIXES:
            return _of_mapping(read_mapping(path), path.parent, str(source), _parts(path))
        try:
            text = path.read_text(encoding="utf-8")
        except FileNotFoundError:
            fix = "give a YAML file, a shell script, or arguments after `--`"
            raise ConfigError(Problem("FILE", f"{path} does not exist", fix)) from None
        except (OSError, UnicodeDecodeError) as error:
            fix = "give a YAML file, a shell script, or arguments after `--`"
            raise ConfigError(Problem("FILE", f"{path} cannot be read ({error})", fix)) from None
        return _of_command(find_command(text), path.parent, str(source))
    return _of_command(find_command(list(source)), Path(), ARGUMENTS)


def _of_command(command: Command | None, folder: Path, name: str) -> Translation:
    if command is None:
        has = "have" if name == ARGUMENTS else "has"
        message = f"{name} {has} no command with options such as --model_name_or_path"
        raise ConfigError(Problem("FILE", message, "give the YAML file that the script names, or the arguments"))
    values: dict[str, Any] = {}
    parts = command.words
    if command.config:
        path = next((at for at in (folder / command.config, Path(command.config)) if at.is_file()), None)
        if path is None:
            message = f"{command.config} does not exist, which {name} names"
            raise ConfigError(Problem("FILE", message, "give the path of that file"))
        values = read_mapping(path)
        parts = (*parts, *_parts(path))
    return _of_mapping({**values, **command.values}, folder, name, parts)


def _of_mapping(values: Mapping[str, Any], folder: Path, name: str, parts: Sequence[str]) -> Translation:
    dialect = recognize(values)
    if dialect is None:
        known = ", ".join(TITLES.values())
        if name == ARGUMENTS:
            message = f"{name} are no command line of {known}: they name no model or data"
            raise ConfigError(Problem("FILE", message, "give --model_name_or_path and --dataset_name too"))
        message = f"{name} is no configuration of {known}: it has none of their keys"
        raise ConfigError(Problem("FILE", message, "train with it as it is, if it is lamina's own: lamina train FILE"))
    draft = Draft(dialect, values, folder)
    _READERS[dialect](draft, tuple(part.lower() for part in parts))
    return draft.finish(name)


def _parts(path: Path) -> tuple[str, ...]:
    """The words of a path, which may say what it trains: `recipes/zephyr/dpo/config_full.yaml`."""
    words: list[str] = []
    for part in (*path.absolute().parts[-4:-1], path.stem):
        words += part.replace("-", "_").split("_")
    return tuple(words)
