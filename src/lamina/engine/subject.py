"""From what a user names (a run, an adapter, or a base) to an engine that answers for it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lamina.adapters.adapter import read_adapter
from lamina.adapters.load import adapter_folder, load_base_for, template_of
from lamina.engine.engine import Engine
from lamina.engine.generator import ADAPTER
from lamina.progress import Notify


def names_adapter(subject: str | Path) -> bool:
    """Whether a subject is a run or an adapter folder, rather than a base."""
    path = Path(subject).expanduser()
    inside = ("adapter_config.json", "adapter/adapter_config.json", "config.yaml", "manifest.json")
    return path.is_dir() and any((path / name).is_file() for name in inside) and not (path / "config.json").is_file()


def open_engine(
    subject: str | Path,
    adapters: Mapping[str, str | Path] | None = None,
    *,
    name: str = ADAPTER,
    model: str | None = None,
    dtype: str = "auto",
    notify: Notify = lambda message: None,
    **settings: Any,
) -> tuple[Engine, str | None]:
    """Opens an engine on a run's or an adapter's base, or on a base.

    Args:
        subject: A run, an adapter folder, or a base (alias, folder, `.gguf` file, hub id).
        adapters: Further adapters by name.
        name: What the subject's own adapter is called.
        model: The base to use for an adapter; by default the one it names.
        dtype: For the base.
        notify: Called with a sentence before anything that takes a while.
        settings: Further arguments of `Engine`.

    Returns:
        The engine, and the name of the subject's adapter; None for a base.

    Raises:
        AdapterError, BaseMismatchError, CertificateError, ConfigError, ModelError: It cannot be opened.
    """
    if not names_adapter(subject):
        return Engine(subject if model is None else model, adapters, dtype=dtype, notify=notify, **settings), None
    adapter = read_adapter(adapter_folder(subject))
    base = load_base_for(adapter, model=model, dtype=dtype, notify=notify)
    own = {name: subject, **(adapters or {})}
    return Engine(base, own, template=template_of(adapter, base), notify=notify, **settings), name
