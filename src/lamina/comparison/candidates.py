"""Builds the candidates of a comparison, one configuration each: from methods, a grid of settings, and named ones."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lamina.config import DEFAULT_METHOD, METHOD_CONFIGS, Config, load_config, merge_overrides, only_given
from lamina.config.losses import DEFAULT_LOSS, LOSS_CONFIGS
from lamina.errors import ConfigError, Problem, nearest
from lamina.runs import Run

_LONGEST_NAME = 80
_OPENING, _CLOSING = "[{(", "]})"


@dataclass(frozen=True)
class Candidate:
    """One candidate of a comparison.

    Attributes:
        name: The name of its run directory, and in the table.
        config: The full configuration, with that run directory.
        changes: How it differs from the comparison's configuration: keys and values as the user wrote them.
        notes: Notes on settings of that configuration that its method does not have.
    """

    name: str
    config: Config
    changes: dict[str, str]
    notes: list[str]

    def digest(self) -> str:
        """Computes the SHA-256 of all settings except the output directory."""
        settings = self.config.model_dump(mode="json", exclude={"output_dir"})
        return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def split_choices(text: str) -> tuple[str, list[str]]:
    """Splits `method.r=4,8` into key and values; commas inside brackets and quotes do not separate values.

    >>> split_choices("method.target_modules=[q_proj],[q_proj,v_proj]")
    ('method.target_modules', ['[q_proj]', '[q_proj,v_proj]'])

    Raises:
        ConfigError: It is not of that form.
    """
    key, equals, rest = text.partition("=")
    parts, depth, quote = [""], 0, ""
    for letter in rest:
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "'\"":
            quote = letter
        elif letter in _OPENING:
            depth += 1
        elif letter in _CLOSING:
            depth -= 1
        elif letter == "," and depth == 0:
            parts.append("")
            continue
        parts[-1] += letter
    values = [part.strip() for part in parts]
    if not equals or not key.strip() or not all(values):
        raise ConfigError(Problem(text, "is not KEY=VALUE[,VALUE]...", "write it such as method.r=4,8,16"))
    return key.strip(), values


def build_candidates(
    values: Mapping[str, Any],
    out: Path,
    *,
    methods: Sequence[str] = (),
    grid: Mapping[str, Sequence[str]] | None = None,
    named: Mapping[str, Sequence[str]] | None = None,
) -> list[Candidate]:
    """Builds every method with every combination of the grid's values, and the named candidates.

    A field of the `method:` section is kept for another method that has the same field. The learning rate is the
    method's default unless the configuration sets one.

    Args:
        values: The configuration's content, as in its file. In a run's config.yaml, only the given settings count.
        out: The comparison's folder.
        methods: Names of methods; by default the configuration's own.
        grid: Key -> its values, as written in YAML. A single value is an override, also for the named candidates.
        named: Name -> `key=value` strings of an additional candidate.

    Raises:
        ConfigError: With the problems of all candidates; nothing was run.
    """
    values = only_given(values)
    grid, named, problems = dict(grid or {}), named or {}, []
    varied = {key: choices for key, choices in grid.items() if len(choices) > 1}
    single = {key: choices[0] for key, choices in grid.items() if len(choices) == 1}
    fixed = {key: value for key, value in single.items() if key.startswith("method.") and key != "method.type"}
    values = merge_overrides(dict(values), [f"{key}={value}" for key, value in single.items() if key not in fixed])
    own = (values.get("method") or {}).get("type", DEFAULT_METHOD)
    for method in methods:
        if method not in METHOD_CONFIGS:
            hint = nearest(method, METHOD_CONFIGS) or f"use {', '.join(METHOD_CONFIGS)}"
            problems.append(Problem("--methods", f"{method!r} is not a method", hint))
    for name in named:
        if not re.fullmatch(r"[\w.=+-]+", name):
            problems.append(Problem("--candidate", f"{name!r} cannot name a folder", "use letters, digits and . = + -"))
    if problems:
        raise ConfigError(problems)
    drafts = [_named(values, name, own, fixed, list(changes)) for name, changes in named.items()]
    if methods or varied or not named:
        combinations = [dict(zip(varied, chosen, strict=True)) for chosen in itertools.product(*varied.values())]
        pairs = itertools.product(methods or [own], combinations)
        drafts = [_combined(values, method, own, fixed, chosen) for method, chosen in pairs] + drafts
    return _checked(drafts, out)


@dataclass(frozen=True)
class _Draft:
    name: str
    values: dict[str, Any]
    changes: dict[str, str]
    notes: list[str]


def _combined(
    values: Mapping[str, Any], method: str, own: str, fixed: Mapping[str, str], chosen: Mapping[str, str]
) -> _Draft:
    given = {**fixed, **chosen}
    has = {key: value for key, value in given.items() if _takes(method, key)}
    section, lacking = _section(values, method, own)
    lacking = [key for key in (f"method.{key}" for key in lacking) if key not in has]
    lacking += [key for key in given if key not in has]
    values = {**values, **_loss_section(values, has.get("loss.type"))}
    label = "".join(f"-{key.rpartition('.')[2]}={_label(value)}" for key, value in has.items() if key in chosen)
    changed = merge_overrides({**values, "method": section}, [f"{key}={value}" for key, value in has.items()])
    return _Draft(f"{method}{label}", changed, {"method.type": method, **has}, _notes(method, lacking))


def _named(values: Mapping[str, Any], name: str, own: str, fixed: Mapping[str, str], changes: list[str]) -> _Draft:
    pairs = {key: value for key, _, value in (text.partition("=") for text in changes)}
    method = pairs.get("method.type", own)
    section, lacking = _section(values, method, own)
    has = {key: value for key, value in fixed.items() if _takes(method, key)}
    given = [f"{key}={value}" for key, value in has.items()] + changes
    values = {**values, **_loss_section(values, pairs.get("loss.type"))}
    lacking = [key for key in (f"method.{key}" for key in lacking) if key not in {**has, **pairs}]
    lacking += [key for key in fixed if key not in has]
    changed = merge_overrides({**values, "method": section}, given)
    return _Draft(name, changed, {"method.type": method, **has, **pairs}, _notes(method, lacking))


def _notes(method: str, lacking: Sequence[str]) -> list[str]:
    cls, notes = METHOD_CONFIGS.get(method), []
    for field in dict.fromkeys(key.removeprefix("method.") for key in lacking):
        own = cls.model_fields.get(field) if cls else None
        notes.append(f"{method} keeps its own {field} ({own.default})" if own else f"{method} takes no {field}")
    return notes


def _section(values: Mapping[str, Any], method: str, own: str) -> tuple[dict[str, Any], list[str]]:
    """Builds the `method:` section for a method, and lists the fields that this method does not have."""
    section = dict(values.get("method") or {})
    if method == own or method not in METHOD_CONFIGS:  # `load_config` reports an unknown name
        return {**section, "type": method}, []
    # A field is the same in two methods if its default is. Others share only the name: VeRA's rank, or the modules of
    # LayerNorm tuning. And peft's fields coincide with another method's only by chance.
    theirs, its = METHOD_CONFIGS[method].model_fields, METHOD_CONFIGS[own].model_fields if own in METHOD_CONFIGS else {}
    alike = {key for key in theirs if key in its and theirs[key].default == its[key].default}
    kept = {key: value for key, value in section.items() if key in alike}
    return {**kept, "type": method}, [key for key in section if key not in kept and key != "type"]


def _loss_section(values: Mapping[str, Any], wanted: str | None) -> dict[str, Any]:
    """Builds the `loss:` section for another loss, from the fields that are the same in both; empty if it stays."""
    section = dict(values.get("loss") or {})
    own = section.get("type", DEFAULT_LOSS)
    if wanted is None or wanted == own or wanted not in LOSS_CONFIGS or own not in LOSS_CONFIGS:
        return {}
    theirs, its = LOSS_CONFIGS[wanted].model_fields, LOSS_CONFIGS[own].model_fields
    alike = {key for key in theirs if key in its and theirs[key].default == its[key].default}
    return {"loss": {**{key: value for key, value in section.items() if key in alike}, "type": wanted}}


def _takes(method: str, key: str) -> bool:
    head, _, field = key.partition(".")
    cls = METHOD_CONFIGS.get(method)
    return head != "method" or cls is None or cls.takes(field.partition(".")[0])


def _checked(drafts: Sequence[_Draft], out: Path) -> list[Candidate]:
    found: dict[str, Candidate] = {}
    problems: list[Problem] = []
    for draft in drafts:
        try:
            candidate = _candidate(draft, draft.name, out)
            if draft.name in found and found[draft.name].digest() != candidate.digest():
                candidate = _candidate(draft, f"{draft.name}-{candidate.digest()[:8]}", out)
        except ConfigError as error:
            problems += [Problem(f"{draft.name}: {p.field}", p.message, p.fix) for p in error.problems]
            continue
        # If a method does not have the fields that the grid varies, its combinations are identical.
        found.setdefault(candidate.name, candidate)
    for candidate in found.values():
        problems += _changed_since(candidate)
    if problems:
        raise ConfigError(problems)
    return list(found.values())


def _candidate(draft: _Draft, name: str, out: Path) -> Candidate:
    config = load_config({**draft.values, "output_dir": str(out / "candidates" / name)})
    return Candidate(name, config, draft.changes, draft.notes)


def _changed_since(candidate: Candidate) -> list[Problem]:
    """Reports an existing run of that name with other settings, which would not be comparable."""
    run = Run(Path(candidate.config.output_dir))
    if not run.manifest_path.is_file() or not run.config_path.is_file():
        return []
    before = Candidate(candidate.name, run.config, {}, [])
    if before.digest() == candidate.digest():
        return []
    message = f"{candidate.name} was trained there with settings other than the current ones"
    return [Problem("--out", message, "choose another --out, or delete that run")]


def _label(value: str) -> str:
    """Formats a value as a part of a file name: `[q_proj, v_proj]` -> `q_proj+v_proj`."""
    text = re.sub(r"[^\w.+-]+", "+", value).strip("+")
    if len(text) <= _LONGEST_NAME:
        return text
    return f"{text[:20]}+{hashlib.sha256(value.encode()).hexdigest()[:8]}"
