"""`push` and `pull`: a version as a repository on the Hugging Face hub, and back.

The repository holds the adapter's files as peft reads them, the manifest, and a model card made from the record.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from lamina.errors import ConfigError, LaminaError, Problem, RegistryError, StorageError
from lamina.registry.adapter_files import ADAPTER_FILES
from lamina.registry.adding import Added, store
from lamina.registry.blobs import copy_blob
from lamina.registry.card import build_card
from lamina.registry.leases import leased
from lamina.registry.manifest import Manifest, build_manifest
from lamina.registry.names import Reference, check_name
from lamina.registry.registry import Registry

MANIFEST_FILE = "lamina-version.json"
CARD_FILE = "README.md"


class Hub(Protocol):
    """What is used of `huggingface_hub.HfApi`."""

    def create_repo(self, repo_id: str, *, private: bool | None = None, exist_ok: bool = False) -> Any:
        """Makes a repository."""
        ...

    def upload_folder(self, *, repo_id: str, folder_path: str, commit_message: str) -> Any:
        """Uploads a folder as one commit."""
        ...

    def snapshot_download(
        self, repo_id: str, *, revision: str | None, allow_patterns: list[str], local_dir: str
    ) -> str:
        """Downloads files."""
        ...


@dataclass(frozen=True)
class Pushed:
    """The result of `push`.

    Attributes:
        repository: Where it went.
        ref: The version.
        digest: Its digest.
        files: Sizes of what was uploaded, by name.
        card: The text of the model card.
        dry_run: Whether nothing was uploaded.
    """

    repository: str
    ref: str
    digest: str
    files: dict[str, int]
    card: str
    dry_run: bool

    def as_json(self) -> dict[str, Any]:
        """As plain data."""
        return dict(vars(self))


def connect() -> Hub:
    """Opens the hub, as the user is logged in there."""
    from huggingface_hub import HfApi

    return HfApi(library_name="lamina")


def push(
    registry: Registry,
    ref: str,
    repository: str,
    *,
    private: bool = True,
    dry_run: bool = False,
    hub: Callable[[], Hub] = connect,
) -> Pushed:
    """Uploads a version.

    Args:
        registry: Where it is.
        ref: Which one.
        repository: OWNER/NAME; made if it is not there.
        private: Whether a new one is private.
        dry_run: Upload nothing, and tell what would be.
        hub: Opens the hub.

    Raises:
        ConfigError: There is no such version, or `repository` is no name.
        RegistryError: A file is missing or damaged, or the hub refused.
    """
    _check_repository(repository)
    shown = registry.show(ref)
    version, manifest = shown.version, shown.manifest
    records = [registry.read_record(record["digest"]) for record in shown.records]
    card = build_card(version, manifest, records, shown.history)
    with tempfile.TemporaryDirectory(prefix="lamina-push-") as name:
        folder = Path(name)
        with leased(registry.records, [Reference(version.name, version=version.number)], registry.who):
            for file in manifest.files:
                with (folder / file.name).open("xb") as target:
                    copy_blob(registry.blobs, file.sha256, file.size, target)
        (folder / MANIFEST_FILE).write_bytes(manifest.content)
        (folder / CARD_FILE).write_text(card, encoding="utf-8")
        sizes = {path.name: path.stat().st_size for path in sorted(folder.iterdir())}
        if not dry_run:
            with _errors(repository):
                api = hub()
                api.create_repo(repository, private=private, exist_ok=True)
                api.upload_folder(
                    repo_id=repository, folder_path=name, commit_message=f"{version.ref} {version.digest}"
                )
    return Pushed(repository, version.ref, version.digest, sizes, card, dry_run)


def pull(
    registry: Registry,
    repository: str,
    name: str,
    *,
    revision: str | None = None,
    hub: Callable[[], Hub] = connect,
) -> Added:
    """Downloads an adapter, and adds it as a version. One that `push` uploaded gets the digest that it had.

    Args:
        registry: Where it goes.
        repository: OWNER/NAME.
        name: What to call it here.
        revision: A commit, tag or branch; by default the newest commit.
        hub: Opens the hub.

    Raises:
        AdapterError: It holds no adapter, or one that was changed.
        ConfigError: A name is none.
        RegistryError: It cannot be downloaded, or is another than its manifest says.
    """
    _check_repository(repository)
    check_name(name)
    with tempfile.TemporaryDirectory(prefix="lamina-pull-") as place:
        folder = Path(place)
        with _errors(repository):
            wanted = [*ADAPTER_FILES, MANIFEST_FILE]
            hub().snapshot_download(repository, revision=revision, allow_patterns=wanted, local_dir=place)
        tags = {"source": f"hf/{repository}" + (f"/{revision}" if revision else "")}
        if not (folder / MANIFEST_FILE).is_file():
            return registry.add(folder, name, adapter_digest=_digest_of(folder), tags=tags)
        manifest = Manifest.from_bytes((folder / MANIFEST_FILE).read_bytes(), f"{repository}: {MANIFEST_FILE}")
        found = build_manifest(folder, adapter_digest=manifest.adapter_digest)
        if (found.files, found.adapter_digest) != (manifest.files, manifest.adapter_digest):
            raise RegistryError(
                f"{repository}: its files are not those that its {MANIFEST_FILE} names. Fix: push the version again, "
                "or delete that file there to take the adapter as it is."
            )
        sources = {file.sha256: folder / file.name for file in manifest.files}
        return store(registry.records, registry.blobs, name, manifest, sources, registry.who, tags)


def _digest_of(folder: Path) -> str | None:
    """The digest of an adapter that lamina did not train cannot be computed here."""
    if (folder / "lamina.json").is_file():
        return None
    raise RegistryError(
        f"{folder}: lamina did not train this adapter. Fix: download it (`hf download`), and add the folder with "
        "`lamina registry add FOLDER --name NAME`."
    )


def _check_repository(repository: str) -> None:
    owner, _, name = repository.partition("/")
    try:
        check_name(owner)
        check_name(name)
    except ConfigError:
        fix = "write OWNER/NAME, such as acme/support"
        raise ConfigError(Problem("REPOSITORY", f"{repository[:200]!r} is no name of a repository", fix)) from None


class _errors:  # noqa: N801
    """Turns errors of the hub's client into ours."""

    def __init__(self, repository: str) -> None:
        self._repository = repository

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if error is None or isinstance(error, LaminaError) or not isinstance(error, Exception):
            return
        if isinstance(error, OSError) and error.errno:
            raise StorageError.wrap(error, self._repository, "talking to the hub") from error
        reason = " ".join(str(error).split())[:300].rstrip(".")
        raise RegistryError(
            f"{self._repository}: the hub refused: {reason}. Fix: check the name, the network, and `hf auth login`."
        ) from error
