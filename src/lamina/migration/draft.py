"""What a translation is made of: one row for each setting of the other library, and lamina's values."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from lamina.dialects.hints import inline
from lamina.dialects.outcome import Entry, Missing, Nothing, Outcome, Set
from lamina.dialects.recognize import TITLES, Dialect
from lamina.errors import ConfigError, Problem, nearest

Kind = Literal["mapped", "default", "own", "missing"]

# The order of the sections in a file.
_SECTIONS = (
    "model",
    "revision",
    "data",
    "method",
    "loss",
    "quantization",
    "train",
    "dtype",
    "device",
    "output_dir",
    "seed",
)


@dataclass(frozen=True)
class Row:
    """What became of one setting.

    Attributes:
        kind: `mapped`: it is set in lamina's configuration; `default`: the same, of a setting that was not given, since
            the other library's default differs; `own`: lamina does it by itself; `missing`: it has no counterpart.
        name: The setting's name in the other library; dotted within a list or a section.
        given: Its value there.
        values: The dotted keys that it sets, with their values.
        note: Where the meaning differs, what lamina does, or what it lacks.
        key: For what is missing: a dotted key of lamina's that makes up for it; empty if there is none.
    """

    kind: Kind
    name: str
    given: Any
    values: Mapping[str, Any] = field(default_factory=dict[str, Any])
    note: str = ""
    key: str = ""

    def as_json(self) -> dict[str, Any]:
        """Returns it as plain data."""
        return {"kind": self.kind, "name": self.name, "given": self.given, "set": dict(self.values), "note": self.note}


@dataclass(frozen=True)
class Translation:
    """A translated configuration.

    Attributes:
        dialect: Whose configuration it was.
        source: The file, or what stands for it in messages.
        values: lamina's configuration, as nested mappings; `load_config` reads it.
        rows: What became of each setting.
    """

    dialect: Dialect
    source: str
    values: dict[str, Any]
    rows: tuple[Row, ...]

    @property
    def title(self) -> str:
        """The other library's name."""
        return TITLES[self.dialect]

    def of(self, *kinds: Kind) -> list[Row]:
        """Returns the rows of some kinds."""
        return [row for row in self.rows if row.kind in kinds]

    def sets(self, key: str) -> bool:
        """Returns whether a dotted key is set."""
        section, _, name = key.partition(".")
        return name in self.values.get(section, {})

    def lost(self, given: Collection[str] = ()) -> list[Row]:
        """Returns the settings without a counterpart, but for those that a key of `given` makes up for."""
        return [row for row in self.of("missing") if row.key not in given]

    def check(self, given: Collection[str] = (), lenient: bool = False) -> None:
        """Refuses a translation that lost settings.

        Args:
            given: Dotted keys that are set in another way, such as overrides.
            lenient: Leave out what lamina can train without.

        Raises:
            ConfigError: Some settings have no counterpart; the error names all of them.
        """
        lost = [row for row in self.lost(given) if not lenient or (row.key and not self.sets(row.key))]
        problems = [Problem(row.name, f"{_said(row.given)}: {row.note}") for row in lost]
        if problems:
            raise ConfigError(problems, f"{self.source} ({self.title})")

    def yaml(self) -> str:
        """Returns the configuration as YAML, with what was lost as comments at the top."""
        lines = [f"# Translated from {self.source} ({self.title}) by `lamina import`."]
        lines += [f"# Not translated: {row.name}: {row.note}" for row in self.of("missing")]
        body = yaml.safe_dump(self.values, sort_keys=False, allow_unicode=True, width=110, default_flow_style=False)
        return "\n".join(lines) + "\n\n" + body

    def as_json(self) -> dict[str, Any]:
        """Returns it as plain data."""
        return {
            "from": self.dialect,
            "source": self.source,
            "config": self.values,
            "rows": [row.as_json() for row in self.rows],
        }


class Draft:
    """A translation in the making.

    Attributes:
        left: The settings that were not dealt with yet.
        values: lamina's values by dotted key.
        folder: The folder of the file; relative paths are looked for from it.
    """

    def __init__(self, dialect: Dialect, given: Mapping[str, Any], folder: Path, title: str = "") -> None:
        self.dialect: Dialect = dialect
        self.left = {str(name): value for name, value in given.items()}
        self.given = dict(self.left)
        self.values: dict[str, Any] = {}
        self.rows: list[Row] = []
        self.folder = folder

    def take(self, name: str, default: Any = None) -> Any:
        """Returns a setting that the caller deals with."""
        return self.left.pop(name, default)

    def set(self, name: str, given: Any, values: Mapping[str, Any], note: str = "", kind: Kind = "mapped") -> None:
        """Records what a setting sets. A value of null removes what was set before."""
        self.rows.append(Row(kind, name, given, dict(values), note))
        self.values.update(values)

    def own(self, name: str, given: Any, reason: str) -> None:
        """Records a setting that lamina needs not be told."""
        self.rows.append(Row("own", name, given, note=reason))

    def missing(self, name: str, given: Any, reason: str, key: str = "") -> None:
        """Records a setting without a counterpart, for which a key of lamina's may make up."""
        self.rows.append(Row("missing", name, given, note=reason, key=key))

    def become(self, name: str, given: Any, outcome: Outcome) -> None:
        """Records the outcome of a setting."""
        match outcome:
            case Set():
                self.set(name, given, outcome.values, outcome.note)
            case Nothing():
                if given is not None and outcome.reason != "it is off":
                    self.own(name, given, outcome.reason)
            case Missing():
                self.missing(name, given, outcome.reason)

    def look_up(self, table: Mapping[str, Entry], first: Iterable[str] = ()) -> None:
        """Deals with all settings that are left by their entries in a table, those of `first` before the others."""
        early = [name for name in first if name in self.left]
        for name in [*early, *(name for name in list(self.left) if name not in early)]:
            given = self.take(name)
            if given is None:
                continue
            entry = table.get(name)
            if entry is None:
                self.missing(name, given, f"no such setting is known. {nearest(name, table)}".strip())
            else:
                self.become(name, given, entry.outcome(given))

    def default(self, values: Mapping[str, Any], of: str = "") -> None:
        """Sets what the other library does by default, unless it was given."""
        for key, value in values.items():
            if key not in self.values:
                self.set(key.rpartition(".")[2], value, {key: value}, of or "the default there", "default")

    def drop(self, key: str, reason: str) -> None:
        """Removes a value that has no effect beside the others."""
        if key in self.values:
            self.values.pop(key)
            for number, row in enumerate(self.rows):
                if key in row.values:
                    rest = {name: value for name, value in row.values.items() if name != key}
                    note = f"{row.note}; {reason}" if row.note and rest else reason
                    self.rows[number] = Row(row.kind if rest else "own", row.name, row.given, rest, note)

    def drop_section(self, section: str, reason: str) -> None:
        """Removes all values of a section."""
        for key in [key for key in self.values if key.startswith(f"{section}.")]:
            self.drop(key, reason)

    def finish(self, source: str) -> Translation:
        """Returns the translation."""
        nested: dict[str, Any] = {}
        for key, value in self.values.items():
            *sections, last = key.split(".")
            node = nested
            for section in sections:
                node = node.setdefault(section, {})
            node[last] = value
        order = [name for name in _SECTIONS if name in nested]
        ordered = {name: nested[name] for name in [*order, *(name for name in nested if name not in order)]}
        return Translation(self.dialect, source, ordered, tuple(self.rows))


def _said(given: Any) -> str:
    return "is not given" if given is None else f"{given!r} has no counterpart"


def as_written(row: Row) -> str:
    """Returns what a row sets, in one line."""
    return ", ".join(f"{key}: {inline(value)}" for key, value in row.values.items())
