"""The manifest of a version: all that is known of an adapter, as canonical JSON whose SHA-256 is its identity.

It holds nothing that differs between two readings of one run, such as a time or a path, so that the same content added
twice is the same version.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

from lamina import files
from lamina.errors import AdapterError, NewerVersionError, RegistryError, check_format
from lamina.registry.adapter_files import ADAPTER_FILES, AdapterFiles, read_adapter_files
from lamina.registry.digests import PREFIX, canonical, digest_of, finite, is_digest
from lamina.registry.names import is_license

FORMAT = 1
KIND = "adapter"
ADAPTER_FOLDER = "adapter"
_RUN_FACTS = ("started", "finished", "threads", "weights", "dtype", "device", "kernels", "hardware", "summary")
# Where things were on the machine that trained is nothing about the adapter.
_PLACES = ("run", "adapter")


@dataclass(frozen=True)
class File:
    """A file of a version.

    Attributes:
        name: Its name in the adapter folder.
        size: Its bytes.
        sha256: Its digest, with `sha256:` before it.
    """

    name: str
    size: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What is known of a version; None or empty for what is not known.

    Attributes:
        adapter_digest: Of what it computes, as evaluations and gate records name it.
        method: Name of the method, or peft's type.
        settings: Of the method.
        files: Of the adapter folder.
        base: What it stands on: `ref`, and the digests of `tensors`, `config`, `tokenizer` and `chat_template`.
        lock: The whole lock.
        probes: How many there are (`count`), and their `digest`: the certificate that every load replays.
        data: The data files that it was trained on.
        config: The resolved configuration of the run.
        run: How training went.
        versions: Of lamina, Python and packages at training.
        evaluations: Digests of evaluations.
        parents: Digests of versions that it came from.
        license: SPDX name of its license.
    """

    adapter_digest: str
    method: str
    settings: dict[str, Any] | None = None
    files: tuple[File, ...]
    base: dict[str, Any]
    lock: dict[str, Any] | None = None
    probes: dict[str, Any] | None = None
    data: tuple[dict[str, Any], ...] = ()
    config: dict[str, Any] | None = None
    run: dict[str, Any] | None = None
    versions: dict[str, str]
    evaluations: tuple[str, ...] = ()
    parents: tuple[str, ...] = ()
    license: str | None = None

    @cached_property
    def content(self) -> bytes:
        """Its canonical JSON."""
        return canonical({"format": FORMAT, "kind": KIND, **asdict(self)})

    @property
    def digest(self) -> str:
        """The version's identity."""
        return digest_of(self.content)

    @property
    def size(self) -> int:
        """Bytes of its files."""
        return sum(file.size for file in self.files)

    @property
    def base_digest(self) -> str | None:
        """Digest of the base's tensors, as gate records name a base."""
        return self.base.get("tensors")

    def as_json(self) -> dict[str, Any]:
        """As plain data."""
        return json.loads(self.content)

    @classmethod
    def from_bytes(cls, content: bytes, source: str) -> Manifest:
        """Reads a manifest.

        Args:
            content: Its canonical JSON.
            source: What to call it in messages.

        Raises:
            RegistryError: It is none.
            NewerVersionError: It has a format that this version does not know.
        """
        try:
            value = json.loads(content)
            check_format(source, value.pop("format"), FORMAT, str((value.get("versions") or {}).get("lamina", "")))
            if value.pop("kind") != KIND:
                raise ValueError("it is of another kind")
            unknown = value.keys() - {field.name for field in fields(cls)}
            if unknown:
                raise ValueError(f"{', '.join(sorted(unknown))} is not known")
            kept = tuple(File(**file) for file in value.pop("files"))
            lists: dict[str, Any] = {name: tuple(value.pop(name)) for name in ("data", "evaluations", "parents")}
            found = cls(**value, **lists, files=kept)
            _check(found)
            same = found.content == content
        except NewerVersionError:
            raise
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise RegistryError(f"{source}: is no manifest of a version ({error}). Fix: get it again.") from None
        if not same:
            raise RegistryError(f"{source}: is not in canonical form. Fix: get it again.")
        return found


def _check(manifest: Manifest) -> None:
    """Checks what others rely on.

    Raises:
        ValueError: Something is not as it must be.
    """
    names = [file.name for file in manifest.files]
    if not set(names) <= set(ADAPTER_FILES) or len(set(names)) != len(names) or not names:
        raise ValueError(f"its files are {names}")
    for file in manifest.files:
        if not is_digest(file.sha256) or type(file.size) is not int or file.size < 0:
            raise ValueError(f"{file.name} has no size and digest")
    if not is_digest(manifest.adapter_digest):
        raise ValueError("adapter_digest is no digest")
    base = manifest.base.get("tensors")
    if base is not None and not isinstance(base, str):
        raise ValueError("base.tensors is no digest")
    if not all(is_digest(each) for each in (*manifest.evaluations, *manifest.parents)):
        raise ValueError("evaluations and parents are digests")
    if not all(isinstance(each, str) for each in (manifest.method, *manifest.versions.values())):
        raise ValueError("method and versions are texts")
    if manifest.license is not None and not is_license(manifest.license):
        raise ValueError("license is no SPDX name")


def find_adapter(source: Path) -> Path:
    """The adapter folder of a run, or the folder itself.

    Raises:
        AdapterError: Neither is there.
    """
    for place in (source / ADAPTER_FOLDER, source):
        files.recover(place)
        if (place / "adapter_config.json").is_file():
            return place
    if not source.is_dir():
        raise AdapterError(f"{source}: there is no such run or adapter folder. Fix: check the path.")
    reason = "this run has no adapter yet" if (source / "config.yaml").is_file() else "holds no adapter"
    raise AdapterError(f"{source}: {reason}. Fix: name a run that is finished, or an adapter folder.")


def build_manifest(
    folder: Path,
    *,
    adapter_digest: str | None = None,
    evaluations: Sequence[str] = (),
    parents: Sequence[str] = (),
    license: str | None = None,
) -> Manifest:
    """Builds the manifest of an adapter.

    Args:
        folder: The adapter folder; the run around it, if there is one, is read as well.
        adapter_digest: Of an adapter that lamina did not train, as `read_adapter` gives it.
        evaluations, parents, license: As in the manifest.

    Raises:
        AdapterError: It is damaged, or its digest is not known.
        RegistryError: Something that was given is not as it must be.
    """
    about = read_adapter_files(folder)
    digest = about.digest or adapter_digest
    if digest is None:
        raise AdapterError(
            f"{folder}: has no lamina.json that would say its digest. Fix: add it with `lamina registry add`, or give "
            "adapter_digest=lamina.adapters.adapter.read_adapter(folder).digest."
        )
    run = folder.parent if folder.name == ADAPTER_FOLDER and (folder.parent / "config.yaml").is_file() else None
    recorded = {} if run is None else _read_json(run / "manifest.json")
    lock = about.lock or {}
    manifest = Manifest(
        adapter_digest=digest,
        method=about.method,
        settings=about.settings,
        files=tuple(_file(folder / name) for name in about.names),
        base=_base(about),
        lock=about.lock,
        probes={"count": len(about.probes), "digest": digest_of(canonical(about.probes))} if about.probes else None,
        data=tuple(recorded.get("data") or lock.get("data") or ()),
        config=None if run is None else _read_config(run),
        run=_run_facts(recorded) or None,
        versions=_versions(lock, recorded),
        evaluations=tuple(sorted(set(evaluations))),
        parents=tuple(sorted(set(parents))),
        license=license,
    )
    try:
        _check(manifest)
        _ = manifest.content  # all of it can be written as JSON
        return manifest
    except UnicodeEncodeError as error:
        text = error.object[: error.end].rpartition('"')[2]  # back to the quote that begins the text
        raise RegistryError(
            f"{folder}: cannot become a version: it names {text[-200:]!r}, which is not UTF-8. Fix: train with a base "
            "and data whose paths are in UTF-8."
        ) from None
    except (ValueError, TypeError) as error:
        raise RegistryError(f"{folder}: cannot become a version: {error}. Fix: check what was given.") from None


def _file(path: Path) -> File:
    return File(path.name, path.stat().st_size, PREFIX + files.sha256_file(path))


def _base(about: AdapterFiles) -> dict[str, Any]:
    lock = about.lock
    if lock is None:
        return {"ref": about.base_ref}
    return {
        "ref": lock.get("base"),
        "tensors": lock.get("base_tensors"),
        "config": lock.get("base_config"),
        "dtype": lock.get("base_dtype"),
        "tokenizer": lock.get("tokenizer"),
        "chat_template": lock.get("chat_template_digest"),
        "quantization": lock.get("quantization"),
    }


def _run_facts(recorded: Mapping[str, Any]) -> dict[str, Any]:
    found = {name: recorded[name] for name in _RUN_FACTS if recorded.get(name) is not None}
    if isinstance(found.get("summary"), dict):
        found["summary"] = {key: value for key, value in found["summary"].items() if key not in _PLACES}
    return finite(found)


def _versions(lock: Mapping[str, Any], recorded: Mapping[str, Any]) -> dict[str, str]:
    found = {"lamina": lock.get("lamina") or recorded.get("lamina"), **(recorded.get("versions") or {})}
    return {str(name): str(value) for name, value in found.items() if value}


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise RegistryError(f"{path}: is not readable ({error}). Fix: put back a copy of it.") from None
    return value if isinstance(value, dict) else {}


def _read_config(run: Path) -> dict[str, Any]:
    import yaml

    path = run / "config.yaml"
    try:
        value = yaml.safe_load(path.read_text(encoding="utf-8"))
        return {} if not isinstance(value, dict) else json.loads(canonical(finite(value)))
    except (OSError, ValueError, TypeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise RegistryError(f"{path}: is not readable ({reason}). Fix: put back a copy of it.") from None
