"""From a reference to a folder: `support@prod` where a run or an adapter folder could stand."""

from __future__ import annotations

from pathlib import Path

from lamina.registry.names import is_reference
from lamina.registry.registry import Registry


def local_path(path: str | Path) -> Path:
    """A path as it is, or the folder of the version that it refers to in the default registry.

    Raises:
        ConfigError: It is a reference, and there is no such version.
        RegistryError: There is no registry, or the version's files are missing or damaged.
    """
    return resolve(str(path)) if is_reference(path) else Path(path)


def resolve(ref: str, registry: Registry | str | Path | None = None) -> Path:
    """Gives a folder with the files of a version, exactly as they were in its adapter folder.

    Args:
        ref: `support`, `support:7`, `support@prod` or `support@sha256:2c26...`.
        registry: The registry, or where it is; by default `$LAMINA_REGISTRY`, or the one in the user's data directory.

    Raises:
        ConfigError: There is no such version.
        RegistryError: There is no registry, or the version's files are missing or damaged.
    """
    if isinstance(registry, Registry):
        return registry.folder(ref)
    with Registry(registry, create=False) as opened:
        return opened.folder(ref)
