"""Names and references: `support`, `support:7`, `support@prod` and `support@sha256:2c26...`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from lamina.errors import ConfigError, Problem

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_ALIAS = re.compile(r"[A-Za-z][A-Za-z0-9._-]{0,63}")
_KEY = re.compile(r"[A-Za-z][A-Za-z0-9._/-]{0,63}")
_LICENSE = re.compile(r"[\w.+ ()-]{1,100}")
_VERSION = re.compile(r"[1-9][0-9]{0,8}")
_PREFIX = re.compile(r"sha256:[0-9a-f]{6,64}")

FORMS = "NAME, NAME:VERSION, NAME@ALIAS or NAME@sha256:DIGEST"


@dataclass(frozen=True)
class Reference:
    """What a reference says; at most one of the last three is there, and without any it means the newest version.

    Attributes:
        name: Of the entry.
        version: Number of a version.
        alias: Name of an alias.
        digest: `sha256:` and the first letters of a version's digest.
    """

    name: str
    version: int | None = None
    alias: str | None = None
    digest: str | None = None

    def __str__(self) -> str:
        if self.version is not None:
            return f"{self.name}:{self.version}"
        part = self.alias or self.digest
        return f"{self.name}@{part}" if part else self.name


def parse(text: str) -> Reference:
    """Reads a reference.

    >>> parse("support@prod").alias
    'prod'

    Raises:
        ConfigError: It has none of the forms.
    """
    name, at, part = text.partition("@")
    if at:
        if _PREFIX.fullmatch(part):
            return Reference(check_name(name), digest=part)
        if part.startswith("sha256:"):
            fix = "give 6 to 64 hexadecimal digits"
            raise ConfigError(Problem("reference", f"{text!r} has no digest after sha256:", fix))
        return Reference(check_name(name), alias=check_alias(part))
    name, colon, part = text.partition(":")
    if colon:
        if not _VERSION.fullmatch(part):
            message = f"{text!r} has {part!r} in the place of a version's number"
            raise ConfigError(Problem("reference", message, f"write {FORMS}"))
        return Reference(check_name(name), version=int(part))
    return Reference(check_name(name))


def parse_alias(text: str) -> Reference:
    """Reads a reference that must name an alias.

    Raises:
        ConfigError: It names none.
    """
    found = parse(text)
    if found.alias is None:
        raise ConfigError(Problem("alias", f"{text!r} names no alias", "write NAME@ALIAS, such as support@prod"))
    return found


def is_reference(text: str | Path) -> bool:
    """Returns whether a text can only be a reference with a version, an alias or a digest, and is no path that exists.

    >>> is_reference("support@prod"), is_reference("runs/support"), is_reference("support")
    (True, False, False)
    """
    text = str(text)
    if "@" not in text and ":" not in text:
        return False
    try:
        parse(text)
    except ConfigError:
        return False
    return not Path(text).exists()


def check_name(name: str) -> str:
    """Returns the name of an entry.

    Raises:
        ConfigError: It is none.
    """
    if not _NAME.fullmatch(name):
        fix = "use letters, digits, dots, dashes and underscores, at most 128, the first a letter or digit"
        raise ConfigError(Problem("name", f"{name[:200]!r} is not a name", fix))
    return name


def check_alias(alias: str) -> str:
    """Returns the name of an alias.

    Raises:
        ConfigError: It is none.
    """
    if not _ALIAS.fullmatch(alias):
        fix = "begin with a letter, and use letters, digits, dots, dashes and underscores, at most 64"
        raise ConfigError(Problem("alias", f"{alias[:200]!r} is not a name of an alias", fix))
    return alias


def is_license(text: str) -> bool:
    """Returns whether a text may be the SPDX name of a license."""
    return _LICENSE.fullmatch(text) is not None


def check_license(text: str) -> str:
    """Returns the name of a license.

    Raises:
        ConfigError: It is none.
    """
    if not is_license(text):
        raise ConfigError(Problem("--license", f"{text[:200]!r} is no SPDX name", "write one, such as apache-2.0"))
    return text


def check_text(field: str, text: str) -> str:
    """Returns a text that any database can hold.

    Raises:
        ConfigError: It holds a byte that was no UTF-8, or NUL.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        fix = "write it in UTF-8; in a shell, see that `locale charmap` says UTF-8"
        raise ConfigError(Problem(field, f"{text[:200]!r} is not UTF-8", fix)) from None
    if "\0" in text:
        raise ConfigError(Problem(field, f"{text[:200]!r} holds NUL, which no database keeps", "leave it out"))
    return text


def check_tag(key: str, value: str) -> tuple[str, str]:
    """Returns a tag.

    Raises:
        ConfigError: Its key is none, or its value is too long or not UTF-8.
    """
    if not _KEY.fullmatch(key):
        fix = "begin with a letter, and use letters, digits, dots, dashes, underscores and slashes, at most 64"
        raise ConfigError(Problem("tag", f"{key[:200]!r} is not a key", fix))
    if not isinstance(value, str):
        raise ConfigError(Problem("tag", f"the value of {key!r} is no text", "write it as one"))
    check_text("tag", value)
    if len(value) > 1000:
        raise ConfigError(Problem("tag", f"the value of {key!r} has {len(value)} letters, 1000 are allowed", "cut it"))
    return key, value
