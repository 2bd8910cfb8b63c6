"""API keys: where they come from, and which of them a request carries. Only their digests are kept."""

from __future__ import annotations

import hashlib
import hmac
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lamina.errors import ConfigError, Problem
from lamina.server.settings import ServeSettings

Scope = Literal["user", "admin"]

# Keys of the environment, several separated by commas.
VARIABLE = "LAMINA_API_KEY"
ADMIN_VARIABLE = "LAMINA_ADMIN_KEY"

_ADMIN = "admin:"
_KEY = re.compile(r"[\x21-\x7e]{1,512}")


@dataclass(frozen=True)
class Caller:
    """Who sends a request.

    Attributes:
        id: The beginning of the key's digest, for logs and cache salts; empty without keys.
        scope: What the caller may do.
    """

    id: str
    scope: Scope


class Keys:
    """The keys of a server; none lets everybody in."""

    def __init__(self, keys: Mapping[str, Scope] | None) -> None:
        """
        Args:
            keys: Key -> scope; None for a server without keys.
        """
        self._digests = None if keys is None else list(_digests(keys))

    @property
    def are_needed(self) -> bool:
        """Whether a request must carry one."""
        return self._digests is not None

    def find(self, authorization: str | None) -> Caller | None:
        """Who sends a header `Authorization: Bearer KEY`; None for nobody who is known.

        Every key is compared, each in constant time.
        """
        if self._digests is None:
            return Caller("", "admin")
        kind, _, key = (authorization or "").partition(" ")
        given, found = _digest(key.strip()), None
        for digest, scope in self._digests:
            if hmac.compare_digest(given, digest):
                found = Caller(digest.hex()[:12], scope)
        return found if kind.lower() == "bearer" else None


def read_keys(settings: ServeSettings, environment: Mapping[str, str] = os.environ) -> Keys:
    """Reads the keys of a server from its file and the environment.

    Raises:
        ConfigError: There are none, and the server is not meant to be without; or the file cannot be used.
    """
    if settings.no_auth:
        return Keys(None)
    found: dict[str, Scope] = {}
    if settings.api_key_file is not None:
        found |= _read_file(Path(settings.api_key_file))
    found |= dict.fromkeys(_listed(environment, VARIABLE), "user")
    found |= dict.fromkeys(_listed(environment, ADMIN_VARIABLE), "admin")
    if not found:
        fix = f"give --api-key-file FILE, set {VARIABLE}, or, on this machine alone, use --no-auth"
        raise ConfigError(Problem("--api-key-file", "there are no API keys", fix))
    return Keys(found)


def _listed(environment: Mapping[str, str], name: str) -> list[str]:
    keys = [key.strip() for key in environment.get(name, "").split(",") if key.strip()]
    for key in keys:
        if not _KEY.fullmatch(key):
            raise ConfigError(Problem(name, "holds a key that is not printable ASCII without blanks", "correct it"))
    return keys


def _read_file(path: Path) -> dict[str, Scope]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(Problem("--api-key-file", f"{path} cannot be read ({error})", "check the path")) from None
    keys: dict[str, Scope] = {}
    for number, line in enumerate(lines, start=1):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        scope: Scope = "admin" if text.startswith(_ADMIN) else "user"
        key = text.removeprefix(_ADMIN)
        if not _KEY.fullmatch(key) or key in keys:
            reason = "has a key a second time" if key in keys else "is no key of printable ASCII without blanks"
            fix = "write one key a line, `KEY` or `admin:KEY`"
            raise ConfigError(Problem("--api-key-file", f"line {number} of {path} {reason}", fix))
        keys[key] = scope
    if not keys:
        raise ConfigError(Problem("--api-key-file", f"{path} has no key", "write one a line, `KEY` or `admin:KEY`"))
    return keys


def _digests(keys: Mapping[str, Scope]) -> Iterator[tuple[bytes, Scope]]:
    for key, scope in keys.items():
        yield _digest(key), scope


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
