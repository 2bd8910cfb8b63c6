"""An `Adapter` on disk: HF PEFT format, plus `lamina.json` with the digest, the lock and the probes.

What is written once is read for ever. `lamina.json` has a number, `format`, and every version reads all numbers up to
its own; `tests/golden` holds files of each. Within a format, fields may be added to a method's configuration, to the
lock and to the probes, with a default that computes what was computed without the field; the digest covers the settings
as they were stored, so that it stays right. Fields that this version does not know come from a newer one, and are an
error. Keys beside those that are read here may be passed over.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from lamina import files
from lamina.adapters.hf_peft import method_config, peft_content, read_peft_config, read_tensors, write_peft
from lamina.adapters.lock import Lock
from lamina.adapters.probes import Probe
from lamina.config import METHOD_CONFIGS, MethodConfig
from lamina.errors import AdapterError, LaminaError, NewerVersionError, check_format
from lamina.methods.shared.base import Injection
from lamina.methods.shared.coverage import with_names
from lamina.methods.shared.score import saved_form
from lamina.models.load import Base

LAMINA_FILE = "lamina.json"
FORMAT = 1


@dataclass(frozen=True)
class Adapter:
    """An adapter as read from disk.

    Attributes:
        path: Its folder.
        config: The method's configuration.
        settings: The same as it is stored, which is what the digest covers.
        base_ref: The base that `adapter_config.json` names.
        tensors: float32, by their names in the HF PEFT format.
        lock: What it is bound to; None for an adapter that lamina did not train.
        probes: Empty for an adapter that lamina did not train.
        peft_config: The content of `adapter_config.json`.
        digest: Of what it computes: method, its settings, and tensors.
    """

    path: Path
    config: MethodConfig
    settings: Mapping[str, Any]
    base_ref: str
    tensors: dict[str, torch.Tensor]
    lock: Lock | None
    probes: list[Probe]
    peft_config: Mapping[str, Any]
    digest: str


def adapter_digest(settings: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 over an adapter's settings as they are stored and its tensors' names, shapes and float32 bytes."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {list(tensor.shape)}\n".encode())
        digest.update(tensor.detach().to("cpu", torch.float32).contiguous().numpy().data)
    return "sha256:" + digest.hexdigest()


def save_adapter(path: Path, injection: Injection, base: Base, lock: Lock, probes: Sequence[Probe]) -> str:
    """Writes the adapter to `path` as a whole or not at all.

    Returns:
        Its digest.

    Raises:
        StorageError: Nothing was written, and an adapter already at `path` is untouched.
    """
    with files.new_folder(path) as folder:
        return write_adapter(folder, injection, base, lock, probes)


def write_adapter(
    folder: Path, injection: Injection, base: Base, lock: Lock, probes: Sequence[Probe], stored: Path | None = None
) -> str:
    """Writes the adapter's files into a folder that is there.

    Args:
        folder: The folder.
        injection: The adapter.
        base: The base that it is on.
        lock: What it is bound to.
        probes: Its probes.
        stored: A file in the folder's file system that holds just the tensors that are trained; where they are the
            adapter's tensors as they are saved, that file is linked and not written again.

    Returns:
        Its digest.
    """
    saved = saved_form(injection)
    config = with_names(injection, saved.config)
    settings = config.model_dump(mode="json")
    digest = adapter_digest(settings, saved.tensors)
    is_stored = stored is not None and _is_as_trained(saved.tensors, injection)
    peft_config = peft_content(injection, config, base.source.public_name)
    if base.source.revision is not None:
        peft_config["revision"] = base.source.revision
    write_peft(folder, peft_config, saved.tensors, stored if is_stored else None)
    about: dict[str, Any] = {
        "format": FORMAT,
        "digest": digest,
        "method": settings,
        "lock": lock.as_json(),
        "probes": [probe.as_json() for probe in probes],
    }
    files.write_json_by_lines(folder / LAMINA_FILE, about)
    if base.added is not None:  # without its tokenizer, nobody could find the new rows
        base.tokenizer.save_pretrained(str(folder))
    return digest


def _is_as_trained(tensors: Mapping[str, torch.Tensor], injection: Injection) -> bool:
    trained = injection.tensors()
    return tensors.keys() == trained.keys() and all(
        tensor.dtype == torch.float32 and tensor.data_ptr() == trained[name].data_ptr()
        for name, tensor in tensors.items()
    )


def read_adapter(path: Path) -> Adapter:
    """Reads an adapter folder, lamina's or peft's.

    Raises:
        AdapterError: A file is missing or damaged, or settings and tensors are not those that the digest was made of.
        NewerVersionError: It has a format or fields that this version does not know.
    """
    peft_config = read_peft_config(path)
    tensors = read_tensors(path)
    base_ref = str(peft_config.get("base_model_name_or_path") or "")
    about_path = path / LAMINA_FILE
    if not about_path.is_file():
        try:
            config = method_config(peft_config)
        except AdapterError as error:
            raise AdapterError(f"{path}: {error}") from None
        settings = config.model_dump(mode="json")
        digest = adapter_digest(settings, tensors)
        return Adapter(path, config, settings, base_ref, tensors, None, [], peft_config, digest)
    try:
        about = json.loads(about_path.read_text(encoding="utf-8"))
        written_by = str(about["lock"].get("lamina", ""))
        check_format(about_path, about["format"], FORMAT, written_by)
        settings: dict[str, Any] = about["method"]
        digest = adapter_digest(settings, tensors)
        _check_digest(path, about["digest"], digest)
        config = _config_of(settings, about_path, written_by)
        lock, probes = Lock.from_json(about["lock"]), [Probe.from_json(probe) for probe in about["probes"]]
    except LaminaError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise AdapterError(f"{about_path}: is not readable ({error}). Fix: copy the adapter again.") from None
    return Adapter(path, config, settings, base_ref, tensors, lock, probes, peft_config, digest)


def _check_digest(path: Path, recorded: str, found: str) -> None:
    if found != recorded:
        raise AdapterError(
            f"{path}: its tensors or settings were changed after training: the digest is {found}, recorded was "
            f"{recorded}. Fix: copy the adapter again; to use changed tensors as they are, delete {LAMINA_FILE}."
        )


def _config_of(settings: Mapping[str, Any], path: Path, written_by: str) -> MethodConfig:
    """The configuration that stored settings stand for; the digest says that a lamina wrote them as they are."""
    # lamina's own record says which method it is; in peft's, two methods may look alike.
    config = METHOD_CONFIGS.get(settings["type"])
    if config is None:
        raise NewerVersionError(path, written_by, f"its method {settings['type']!r} is not known here")
    try:
        return config.model_validate(settings)
    except ValidationError as error:
        fields = ", ".join(sorted({".".join(map(str, detail["loc"])) for detail in error.errors()}))
        raise NewerVersionError(path, written_by, f"its method's settings are not known here ({fields})") from None


def check_tensors(adapter: Adapter, injection: Injection) -> None:
    """Checks that the tensors of an adapter of lamina's are just those that the model takes, by name and shape.

    Raises:
        AdapterError: With the first names that do not match.
    """
    wanted = {name: tuple(tensor.shape) for name, tensor in injection.saved_tensors().items()}
    found = {name: tuple(tensor.shape) for name, tensor in adapter.tensors.items()}
    if wanted == found:
        return
    missing, extra = sorted(wanted.keys() - found.keys()), sorted(found.keys() - wanted.keys())
    shapes = [n for n in wanted.keys() & found.keys() if wanted[n] != found[n]]
    parts = []
    if missing:
        parts.append(f"{len(missing)} tensors are missing (first: {missing[0]})")
    if extra:
        parts.append(f"{len(extra)} fit no module (first: {extra[0]})")
    if shapes:
        parts.append(f"{shapes[0]} has the shape {found[shapes[0]]}, the model takes {wanted[shapes[0]]}")
    by = f", with lamina {adapter.lock.lamina}, which wrote it" if adapter.lock else ""
    raise AdapterError(
        f"{adapter.path}: does not fit the model: {'; '.join(parts)}. Fix: load it on the base it was trained on{by}."
    )
