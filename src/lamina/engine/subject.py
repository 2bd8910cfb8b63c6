"""What a user names: a base, a run or an adapter folder, which is an adapter of its own base, or a model at a URL."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import try_to_load_from_cache

from lamina.adapters.adapter import read_adapter
from lamina.adapters.load import adapter_folder, base_of, load_base_for
from lamina.config.aliases import ALIASES
from lamina.config.hub import parse_hub
from lamina.config.quantization import QuantizationConfig
from lamina.errors import ConfigError, Problem
from lamina.models.load import Base, load_base
from lamina.progress import Notify
from lamina.registry.names import is_reference
from lamina.registry.resolve import local_path
from lamina.runs import ADAPTER_FOLDER, CHECKPOINT_FOLDER


@dataclass(frozen=True)
class Subject:
    """A base, and what it is to be held in.

    Attributes:
        base: An alias, a folder, a `.gguf` file or a hub id.
        name: What requests call it.
        adapter: The name and the path of the adapter that was named in its stead; None if it was not.
        dtype: Of the base, where the adapter was trained in float32; else `auto`.
        quantization: As the adapter was trained on it.
    """

    base: str
    name: str
    adapter: tuple[str, Path] | None = None
    dtype: str = "auto"
    quantization: QuantizationConfig | None = None

    def load(self, dtype: str = "auto", notify: Notify = lambda message: None) -> Base:
        """Loads the base.

        Args:
            dtype: `bfloat16` or `float32`; `auto` is what the adapter was trained on.
            notify: Called with a sentence before anything that takes a while.

        Raises:
            AdapterError, ModelError: It cannot be loaded.
        """
        if self.adapter is None:
            return load_base(self.base, dtype, notify=notify)
        adapter = read_adapter(adapter_folder(self.adapter[1]))
        return load_base_for(adapter, model=self.base, dtype=dtype, notify=notify)


def find_subject(ref: str, notify: Notify = lambda message: None, model: str | None = None) -> Subject:
    """Finds out what a reference names.

    Args:
        ref: An alias, a folder, a `.gguf` file, a hub id, a run or adapter folder, or a version in the registry, such
            as `support@prod`.
        notify: Called with a sentence before anything that takes a while.
        model: For an adapter: another base than the one that it names.

    Raises:
        AdapterError: It is an adapter that cannot be read, or whose base is not there.
        ConfigError, RegistryError: It refers to a version that the registry does not have, or whose files it lost.
    """
    path = local_path(Path(ref).expanduser())
    if ref in ALIASES or not is_adapter(path):
        return Subject(ref, base_name(ref))
    folder = adapter_folder(path)
    adapter = read_adapter(folder)
    base, lock = model or base_of(adapter, notify), adapter.lock
    whole = path.resolve()
    name = as_name(_name_of(whole))
    if is_reference(ref):
        name = ref
    return Subject(
        base,
        base_name(lock.base if lock is not None else base),
        (name, path),
        "float32" if lock is not None and lock.base_dtype == "float32" else "auto",
        QuantizationConfig(**lock.quantization) if lock is not None and lock.quantization else None,
    )


def _name_of(folder: Path) -> str:
    """What a run, its adapter or one of its checkpoints is called; other folders by their last name."""
    if folder.parent.name == CHECKPOINT_FOLDER:
        return f"{folder.parent.parent.name}-{folder.name}"
    return folder.parent.name if folder.name == ADAPTER_FOLDER else folder.name


def split_url(ref: str) -> tuple[str, str] | None:
    """Splits a reference to a model behind an OpenAI-compatible server, `http://HOST:PORT/v1#MODEL`.

    Returns:
        The server's URL and the model's name; None for what is no URL.

    Raises:
        ConfigError: It is a URL without the name of a model.
    """
    if not ref.startswith(("http://", "https://")):
        return None
    url, _, model = ref.partition("#")
    if not model:
        raise ConfigError(Problem("subject", f"{ref!r} names no model", f"write {url.rstrip('/')}#MODEL"))
    return url.rstrip("/"), model


def is_adapter(path: Path) -> bool:
    """Whether a folder is a run, or holds an adapter."""
    names = ("adapter_config.json", f"{ADAPTER_FOLDER}/adapter_config.json", "manifest.json")
    return path.is_dir() and any((path / name).is_file() for name in names)


def names_base(ref: str) -> bool:
    """Whether a reference is an alias, a model's folder or file, or a hub id in the local cache; not a run."""
    path = Path(ref).expanduser()
    if ref in ALIASES or path.is_file() or (path / "config.json").is_file():
        return True
    place = None if path.exists() else parse_hub(ref)
    if place is None:
        return False
    name = f"{place.subfolder}/config.json" if place.subfolder else "config.json"
    return isinstance(try_to_load_from_cache(place.id, name, revision=place.revision), str)


def base_name(ref: str) -> str:
    """What requests call a base: an alias or a hub id as it is, a folder or a file by its last name."""
    if ref in ALIASES:
        return ref
    path = Path(ref).expanduser()
    return as_name(path.resolve().name.removesuffix(".gguf")) if path.exists() else ref


def as_name(text: str) -> str:
    """A text as a name that clients may use."""
    return re.sub(r"[^A-Za-z0-9._-]", "-", text).lstrip("._-")[:128] or "model"
