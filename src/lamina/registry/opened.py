"""An open registry: its database, its files, and who uses it."""

from __future__ import annotations

from pathlib import Path
from typing import Self

from lamina.registry.blobs import open_blobs
from lamina.registry.facts import Version, me
from lamina.registry.lookup import find_version
from lamina.registry.names import check_text, parse
from lamina.registry.places import find_place
from lamina.registry.records.open import open_database


class Opened:
    """What every verb uses.

    Attributes:
        place: Where it is.
        who: Who changes it, for the history.
        blobs: Its files.
        records: Its database.
    """

    def __init__(self, place: str | Path | None = None, *, create: bool = True, who: str | None = None) -> None:
        """Opens a registry.

        Args:
            place: A folder or a URL; by default `$LAMINA_REGISTRY`, or else a folder in the user's data directory.
            create: Whether to make one where there is none.
            who: Who changes it, for the history; by default the user and the machine.

        Raises:
            ConfigError: `place` is none, or `who` is not UTF-8.
            NewerVersionError: A newer lamina has changed its tables.
            RegistryError: It is damaged, cannot be reached, or is not there.
        """
        self.place = find_place(place)
        self.who = check_text("who", who or me())
        self.records = open_database(self.place, create)
        self.blobs = open_blobs(self.place.blobs)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes its database."""
        self.records.close()

    def find(self, ref: str) -> Version:
        """Finds a version.

        Args:
            ref: `support` (the newest version), `support:7`, `support@prod` or `support@sha256:2c26...`.

        Raises:
            ConfigError: There is none; the nearest name is given.
        """
        reference = parse(ref)
        with self.records.reading() as tx:
            return find_version(tx, reference)
