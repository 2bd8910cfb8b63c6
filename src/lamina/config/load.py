"""`load_config`: reads a checked `Config` from YAML, a dictionary or command-line overrides.

It reports all problems at once, each with the field, the value, what is allowed, and the closest valid name.
"""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from lamina import plugins
from lamina.config.contradictions import without_contradicted
from lamina.config.given import only_given, resolved_values, section_of
from lamina.config.losses import LOSS_CONFIGS, NO_LOSSES, LossConfig
from lamina.config.methods import METHOD_CONFIGS, MethodConfig
from lamina.config.overrides import read_value
from lamina.config.peft_objects import is_peft_config, method_config_from_peft
from lamina.config.places import at_home, expand_home, map_paths, own_run
from lamina.config.read import STDIN, read_config, read_yaml
from lamina.config.root import Config
from lamina.config.shorthand import is_data_file, run_name
from lamina.dialects.hints import hint_for, value_hint
from lamina.dialects.recognize import TITLES, recognize
from lamina.errors import ConfigError, NewerVersionError, Problem, nearest
from lamina.version import is_newer

# Sections that have one of several classes, and an example of a `type`.
_MEMBERS: dict[str, Mapping[str, type[BaseModel]]] = {"method": METHOD_CONFIGS, "loss": LOSS_CONFIGS}
_TYPES = {"method": "type: lora", "loss": "type: cross_entropy"}

# Fields whose value is the name of a plug-in (`lamina/plugins.py`).
_FAMILIES = {"method.type": "methods", "loss.type": "losses", "train.optim": "optimizers", "data.format": "formats"}


# How the problem of an unknown key begins.
_UNKNOWN = "unknown key"

# Fields that name files and folders.
_PATHS = ("model", "method.from", "output_dir", "data.train", "data.eval", "data.replay")


def load_config(source: str | Path | Mapping[str, Any] | Config, overrides: Iterable[str] = ()) -> Config:
    """Reads and checks a configuration.

    Args:
        source: A YAML file (`-` is standard input), a data file to train on, a mapping with the same structure as the
            YAML (paths may be `Path`s, and `method` a configuration object of peft's), or a `Config`. A run's own
            `config.yaml` belongs to the run directory that it is in, even after that was moved, and its relative paths
            are resolved as they were when the run started.
        overrides: `key.sub=value` strings; see `read_value` for how the value is parsed. Given settings stay; filled-in
            settings follow the overrides, for example the default learning rate of another method or optimizer.

    Returns:
        The configuration with all defaults filled in.

    Raises:
        ConfigError: The configuration is invalid; the error lists all problems.
        NewerVersionError: The run was started by a newer version, with settings that this version does not know.
    """
    values, name, started_by = _values_of(source)
    values = map_paths(merge_overrides(only_given(values), overrides), lambda field, path: expand_home(path))
    if isinstance(values.get("output_dir"), str):
        values["output_dir"] = expand_home(values["output_dir"])
    unusable = list(_unusable_texts(values))
    try:
        config = Config.model_validate(values)
    except ValidationError as error:
        found = _one_per_field([_problem(detail) for detail in error.errors()])
        problems = [*unusable, *_names_once(found)]
        if is_newer(started_by):
            reason = "; ".join(f"{problem.field}: {problem.message}" for problem in problems)
            raise NewerVersionError(name, started_by, reason.removesuffix(".")) from None
        raise ConfigError(problems, name) from None
    if unusable:
        raise ConfigError(unusable, name)
    return config


def config_values(source: str | Path) -> dict[str, Any]:
    """Returns what a configuration file sets, with what it includes, or the defaults for a data file; not checked.

    Raises:
        ConfigError: It cannot be read.
    """
    return _values_of(source)[0]


def _values_of(source: str | Path | Mapping[str, Any] | Config) -> tuple[dict[str, Any], str, str]:
    """Returns the values that a source has, its name for errors, and the version that started the run it belongs to."""
    if isinstance(source, Config):
        return resolved_values(source), "", ""
    if isinstance(source, Mapping):
        method = source.get("method")
        if is_peft_config(method):
            source = {**source, "method": method_config_from_peft(method)}
        return _without_path_objects(source), "", ""
    path = Path(source)
    if is_data_file(path):
        return {"data": {"train": str(source)}, "output_dir": f"runs/{run_name(path)}"}, "", ""
    if origin := own_run(path):
        return at_home(read_yaml(path), path.parent, origin), str(source), origin.lamina
    values = read_config(path)
    if dialect := recognize(values):
        message = f"{path} is a configuration of {TITLES[dialect]}, not of lamina"
        fix = f"translate it with `lamina import {shlex.quote(str(source))} --out run.yaml`"
        raise ConfigError(Problem("config", message, fix))
    if str(source) != STDIN:
        values.setdefault("output_dir", f"runs/{path.stem}")
    return values, str(source), ""


def merge_overrides(values: dict[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """Applies `key.sub=value` overrides to a copy of a mapping, without the settings that they contradict."""
    merged = _deep_copy(values)
    problems, given = [], set[tuple[str, ...]]()
    for override in overrides:
        key, equals, text = override.partition("=")
        path = key.strip().split(".")
        if not equals or not all(path):
            problems.append(Problem(override, "is not a valid override", "write key.sub=value, such as train.seed=1"))
            continue
        node = merged
        for part in path[:-1]:
            child = node.get(part)
            if child is None:
                child = node[part] = {}
            if not isinstance(child, dict):
                problems.append(Problem(key, f"{part!r} has the value {child!r}, so it has no keys below it"))
                break
            node = child
        else:
            try:
                node[path[-1]] = read_value(path, text, override)
                given.add(tuple(path))
            except ConfigError as error:
                problems += error.problems
    if problems:
        raise ConfigError(problems)
    return without_contradicted(merged, given)


def _unusable_texts(value: Any, field: str = "") -> Iterator[Problem]:
    """Yields a problem for each string that cannot be a path, a name or a token."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _unusable_texts(item, f"{field}.{key}" if field else str(key))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _unusable_texts(item, field)
    elif isinstance(value, str) and "\0" in value:
        message = f"got {_short(value)}; it contains a NUL character, which a path or name cannot have."
        yield Problem(field, message, r"remove it; in double quotes, YAML reads \0 as NUL")
    elif isinstance(value, str) and field.startswith(_PATHS) and not _can_name_a_file(value):
        encoding = sys.getfilesystemencoding()
        message = f"got {_short(value)}; this process encodes paths as {encoding}, which lacks some of its characters."
        yield Problem(field, message, "set PYTHONUTF8=1, or a UTF-8 locale such as LC_ALL=C.UTF-8")


def _can_name_a_file(text: str) -> bool:
    try:
        os.fsencode(text)
    except UnicodeEncodeError:
        return False
    return True


def _problem(detail: ErrorDetails) -> Problem:
    """Turns a pydantic error into a `Problem`."""
    location = [str(part) for part in detail["loc"] if not _is_union_tag(part)]
    field = ".".join(_as_written(location)) or "config"
    kind, value, context = detail["type"], detail["input"], detail.get("ctx", {})
    match kind:
        case "extra_forbidden":
            section = _section_at(location[:-1])
            allowed = sorted(section.model_fields) if section is not None else []
            absent = section.absent if section is not None and issubclass(section, (MethodConfig, LossConfig)) else {}
            hint = absent.get(location[-1]) or hint_for(field, value) or nearest(location[-1], allowed)
            return Problem(field, f"{_UNKNOWN}; allowed here: {', '.join(allowed)}.", hint)
        case "missing":
            return Problem(field, "is required but not given.", f"add it, such as `{_example(_as_written(location))}`")
        case "literal_error" | "enum":
            return _no_such(field, value, str(context.get("expected")))
        case "union_tag_invalid":
            return _no_such(f"{field}.type", context.get("tag"), str(context["expected_tags"]))
        case "union_tag_not_found":
            return Problem(f"{field}.type", "is required but not given.", f"name one, such as `{_TYPES[field]}`")
        case "value_error":
            return Problem(field, str(detail["msg"]).removeprefix("Value error, "))
        case "model_type" | "dict_type" | "model_attributes_type":
            return Problem(field, f"got {_short(value)}; must be a mapping of keys.")
        case _:
            message = detail["msg"].replace("Input should be", "must be").replace("Input", "the value")
            return Problem(field, f"got {_short(value)}; {message}.", value_hint(field, value))


def _no_such(field: str, value: object, expected: str) -> Problem:
    """Returns the problem of an unknown value, with the reason if it is a plug-in that cannot be imported."""
    family = _FAMILIES.get(field)
    reason = plugins.problems(family).get(str(value)) if family is not None else None
    if reason is not None:
        return Problem(field, f"{value!r} cannot be used: {reason}.")
    if field == "loss.type" and str(value).lower() in NO_LOSSES:
        why, fix = NO_LOSSES[str(value).lower()]
        return Problem(field, f"{value!r} is not one of {expected}: {why}.", fix)
    hint = value_hint(field, value) or nearest(str(value), re.findall(r"'([^']*)'", expected))
    return Problem(field, f"{value!r} is not one of {expected}.", hint)


def _as_written(location: list[str]) -> list[str]:
    """Removes the chosen type, which pydantic adds below `method` and `loss`, from a location."""
    named = location[1:2] and location[1] in _MEMBERS.get(location[0], ())
    return [location[0], *location[2:]] if named else location


def _one_per_field(problems: list[Problem]) -> list[Problem]:
    """Joins the errors of a union's members for one value: `must be less than 1, or must be a valid string`."""
    joined: dict[str, Problem] = {}
    for problem in problems:
        earlier = joined.get(problem.field)
        if earlier is None:
            joined[problem.field] = problem
        else:
            alternative = problem.message.partition("; ")[2] or problem.message
            joined[problem.field] = Problem(
                problem.field,
                f"{earlier.message.removesuffix('.')}, or {alternative}",
                earlier.fix or problem.fix,
            )
    return list(joined.values())


def _names_once(problems: list[Problem]) -> list[Problem]:
    """Leaves the names that a section allows with its first unknown key alone."""
    told: set[str] = set()
    shortened = []
    for problem in problems:
        if problem.message in told and problem.message.startswith(_UNKNOWN):
            problem = Problem(problem.field, f"{_UNKNOWN}.", problem.fix)
        told.add(problem.message)
        shortened.append(problem)
    return shortened


def _is_union_tag(part: object) -> bool:
    """Returns whether a part of a location is a union member's name from pydantic, not a key."""
    return isinstance(part, str) and bool(
        re.match(
            r"^(constrained-|function-|literal\[|nullable|list\[|dict\[|str$|bool$|EvalSource$|SourceConfig$)", part
        )
    )


def _section_at(location: list[str]) -> type[BaseModel] | None:
    model: type[BaseModel] | None = Config
    for part in location:
        model = section_of(model, part) if model is not None else None
    return model


def _example(location: list[str]) -> str:
    *sections, last = location
    inner = f"{last}: {'train.jsonl' if last == 'train' else '...'}"
    for section in reversed(sections):
        inner = f"{section}: {{{inner}}}"
    return inner


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _without_path_objects(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_path_objects(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_path_objects(item) for item in value]
    return os.fspath(value) if isinstance(value, Path) else value


def _deep_copy(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _deep_copy(item) for key, item in value.items()}
    return [_deep_copy(item) for item in value] if isinstance(value, list) else value
