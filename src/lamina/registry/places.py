"""Where a registry is: a folder, or the URL of its records with the place of its blobs.

registries/team                                             a folder: registry.db, and blobs/ beside it
sqlite:////srv/registry.db?blobs=s3://bucket/adapters       records in a file, blobs elsewhere
postgresql://user@host/lamina?blobs=s3://bucket/adapters    records in PostgreSQL
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit, urlunsplit

from lamina.errors import ConfigError, Problem

VARIABLE = "LAMINA_REGISTRY"
RECORDS_FILE = "registry.db"
BLOBS_FOLDER = "blobs"
_POSTGRES = ("postgresql", "postgres", "postgresql+psycopg")


@dataclass(frozen=True)
class Place:
    """The two halves of a registry.

    Attributes:
        shown: What to call it in messages; without a password.
        records: Path of an SQLite file, or URL of a PostgreSQL database.
        blobs: A folder, or a URL that fsspec knows.
    """

    shown: str
    records: Path | str
    blobs: Path | str


_named: ContextVar[str | Path | None] = ContextVar("_named", default=None)


@contextlib.contextmanager
def versions_in(place: str | Path | None) -> Iterator[None]:
    """Lets references such as `support@prod` mean the versions of a registry in the block; None changes nothing."""
    token = _named.set(_named.get() if place is None else place)
    try:
        yield
    finally:
        _named.reset(token)


def default_place() -> str:
    """Returns what `versions_in` names, or `$LAMINA_REGISTRY` if set, or else a folder in the user's data directory."""
    if given := _named.get() or os.environ.get(VARIABLE):
        return str(given)
    import platformdirs

    return str(Path(platformdirs.user_data_dir("lamina")) / "registry")


def find_place(text: str | Path | None = None) -> Place:
    """Finds out where a registry is.

    Args:
        text: A folder or a URL; by default `default_place`.

    Raises:
        ConfigError: It is neither.
    """
    text = str(default_place() if text is None else text)
    scheme, colon, _ = text.partition("://")
    if not colon:
        return _folder(Path(text).expanduser())
    parts = urlsplit(text)
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    blobs = options.pop("blobs", None)
    if scheme == "file":
        return _folder(Path(unquote(parts.path)))
    if scheme == "sqlite":
        path = Path(unquote(parts.path[1:]))
        return Place(text, path, path.parent / BLOBS_FOLDER if blobs is None else _place_of(blobs))
    if scheme in _POSTGRES:
        shown = f"postgresql://{parts.hostname or ''}{parts.path}"
        if blobs is None:
            fix = "add where files go, a folder that all see or a bucket: ?blobs=s3://bucket/adapters"
            raise ConfigError(Problem("--registry", f"{shown} holds records, and no files", fix))
        url = urlunsplit(("postgresql+psycopg", parts.netloc, parts.path, urlencode(options), ""))
        return Place(shown, url, _place_of(blobs))
    fix = f"give a folder, or postgresql://...?blobs={text}"
    raise ConfigError(Problem("--registry", f"{scheme}:// can hold blobs, and no records", fix))


def _folder(path: Path) -> Place:
    if path.is_file():
        raise ConfigError(Problem("--registry", f"{path} is a file", "give a folder, or sqlite:///PATH"))
    return Place(str(path), path / RECORDS_FILE, path / BLOBS_FOLDER)


def _place_of(blobs: str) -> Path | str:
    if blobs.startswith("file://"):
        return Path(unquote(urlsplit(blobs).path))
    return blobs if "://" in blobs else Path(blobs).expanduser()
