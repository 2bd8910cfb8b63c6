"""Writes the files of a version into a folder of the user's cache, called by the version's digest.

The folder is written as a whole, and holds the adapter's files as they were. While it is being filled, a lease keeps
`gc` from removing what is read.
"""

from __future__ import annotations

from pathlib import Path

from filelock import FileLock

from lamina import files
from lamina.cache.folder import cache_folder, hold, writing_cache
from lamina.registry.blobs import Blobs, copy_blob, read_blob
from lamina.registry.digests import PREFIX
from lamina.registry.leases import leased
from lamina.registry.manifest import Manifest
from lamina.registry.names import Reference
from lamina.registry.records.database import Database


def materialize(records: Database, blobs: Blobs, reference: Reference, who: str) -> Path:
    """Writes the files of a version into the cache, if they are not there.

    Args:
        records, blobs: The registry's.
        reference: The version.
        who: Who reads it.

    Returns:
        The folder.

    Raises:
        ConfigError: There is no such version.
        RegistryError: Its files are missing or damaged.
        StorageError: The cache cannot be written.
    """
    with leased(records, [reference], who) as (version,):
        manifest = Manifest.from_bytes(read_blob(blobs, version.digest), version.ref)
        folder = cache_folder() / "adapters" / version.digest.removeprefix(PREFIX)[:32]
        hold(folder)
        if not _is_whole(folder, manifest):
            with writing_cache(folder, "writing"):
                folder.parent.mkdir(parents=True, exist_ok=True)
                with FileLock(f"{folder}.lock"):
                    if not _is_whole(folder, manifest):
                        _write(blobs, manifest, folder)
        return folder


def _write(blobs: Blobs, manifest: Manifest, folder: Path) -> None:
    with files.new_folder(folder) as temporary:
        for file in manifest.files:
            with (temporary / file.name).open("wb") as target:
                copy_blob(blobs, file.sha256, file.size, target)
    for file in manifest.files:
        (folder / file.name).chmod(0o444)


def _is_whole(folder: Path, manifest: Manifest) -> bool:
    """Whether a folder holds the files; their digests are checked by what loads them."""
    try:
        found = {entry.name: entry.stat().st_size for entry in folder.iterdir()}
    except OSError:
        return False
    return found == {file.name: file.size for file in manifest.files}
