"""What becomes of a setting of another library: it is set here, nothing needs to be set, or it has no counterpart."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Set:
    """The same is set here.

    Attributes:
        values: Dotted keys of lamina's configuration, and their values.
        note: Where the meaning differs a little; empty if it does not.
    """

    values: Mapping[str, Any]
    note: str = ""


@dataclass(frozen=True)
class Nothing:
    """Nothing needs to be set.

    Attributes:
        reason: What lamina does anyway, as a sentence that begins in lower case.
    """

    reason: str


@dataclass(frozen=True)
class Missing:
    """lamina has no counterpart.

    Attributes:
        reason: What it lacks, or what to use in its place.
    """

    reason: str


Outcome = Set | Nothing | Missing
Convert = Callable[[Any], Any]


class Entry:
    """What lamina has for one setting of another library."""

    def outcome(self, value: Any) -> Outcome:
        """Returns what becomes of the setting with that value."""
        raise NotImplementedError


@dataclass(frozen=True)
class To(Entry):
    """The same setting, perhaps under another name.

    Attributes:
        key: Its dotted key in lamina's configuration.
        convert: Returns the value for that key, or an `Outcome`.
        note: Where the meaning differs a little.
    """

    key: str
    convert: Convert = field(default=lambda value: value)
    note: str = ""

    def outcome(self, value: Any) -> Outcome:
        if value is None:
            return Nothing("it is not set")
        try:
            found = self.convert(value)
        except (TypeError, ValueError, AttributeError):
            return Missing(f"{value!r} is no value for it")
        return found if isinstance(found, Set | Nothing | Missing) else Set({self.key: found}, self.note)


@dataclass(frozen=True)
class Own(Entry):
    """Something that lamina does by itself, or that has no meaning for it.

    Attributes:
        reason: What lamina does.
    """

    reason: str

    def outcome(self, value: Any) -> Outcome:
        return Nothing(self.reason)


@dataclass(frozen=True)
class Lacks(Entry):
    """Something without a counterpart; no loss as long as it is off.

    Attributes:
        reason: What lamina lacks, or what to use in its place.
        off: Values that ask for nothing, beside null, false, 0 and what is empty.
    """

    reason: str
    off: tuple[Any, ...] = ()

    def outcome(self, value: Any) -> Outcome:
        if not value or value in self.off:
            return Nothing("it is off")
        return Missing(self.reason)


@dataclass(frozen=True)
class Read(Entry):
    """Something that is read together with other settings, such as a list of data sets.

    Attributes:
        key: The dotted key of lamina's configuration that says the same.
        example: How to write that key.
    """

    key: str
    example: str

    def outcome(self, value: Any) -> Outcome:
        return Missing(f"write `{self.example}`")


def chosen(names: Mapping[str, Any], key: str, otherwise: str) -> Convert:
    """Returns a conversion by a table of names.

    Args:
        names: The other library's names, in lower case: what to set `key` to, or an `Outcome`.
        key: A dotted key.
        otherwise: Why other names have no counterpart; `{}` is the name.
    """

    def convert(value: Any) -> Any:
        name = str(getattr(value, "value", value)).lower()
        found = names.get(name, Missing(otherwise.format(value)))
        return found if isinstance(found, Set | Nothing | Missing) else Set({key: found})

    return convert
