"""The error about settings that a configuration of TRL or peft does not have."""

from __future__ import annotations

from collections.abc import Iterable

from lamina.errors import ConfigError, Problem, nearest


class UnknownSettingError(ConfigError, TypeError):
    """A configuration has no such settings. It is a `TypeError` too, which TRL and peft raise for them."""


def refuse_unknown(kind: str, given: Iterable[str], known: Iterable[str]) -> None:
    """Refuses settings that a configuration does not have.

    Args:
        kind: Name of the configuration's class.
        given: The settings that were given.
        known: The settings that it has.

    Raises:
        UnknownSettingError: Some are unknown; the error names all of them.
    """
    known = list(known)
    unknown = [name for name in given if name not in known]
    if unknown:
        otherwise = "remove it, or write the name that the library's documentation has"
        raise UnknownSettingError(
            [Problem(kind, f"has no setting {name!r}", nearest(name, known) or otherwise) for name in unknown]
        )
