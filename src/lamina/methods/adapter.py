"""An `Adapter` on disk: HF PEFT format, plus `lamina.json` with the digest, the lock and the probes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lamina import files
from lamina.config import METHOD_CONFIGS, MethodConfig
from lamina.errors import AdapterError
from lamina.methods.base import Injection, find_method
from lamina.methods.coverage import with_names
from lamina.methods.hf_peft import method_config, read_peft_config, read_tensors, write_peft
from lamina.methods.lock import Lock
from lamina.methods.probes import Probe
from lamina.methods.targets import short_targets
from lamina.models.load import Base

LAMINA_FILE = "lamina.json"
FORMAT = 1


@dataclass(frozen=True)
class Adapter:
    """An adapter as read from disk.

    Attributes:
        path: Its folder.
        config: The method's configuration.
        base_ref: The base that `adapter_config.json` names.
        tensors: float32, by their names in the HF PEFT format.
        lock: What it is bound to; None for an adapter that lamina did not train.
        probes: Empty for an adapter that lamina did not train.
    """

    path: Path
    config: MethodConfig
    base_ref: str
    tensors: dict[str, torch.Tensor]
    lock: Lock | None
    probes: list[Probe]

    @property
    def digest(self) -> str:
        """Digest of what it computes: method, its settings, and tensors."""
        return adapter_digest(self.config, self.tensors)


def adapter_digest(config: MethodConfig, tensors: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 over an adapter's configuration and its tensors' names, shapes and float32 bytes."""
    digest = hashlib.sha256(json.dumps(config.model_dump(mode="json"), sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {list(tensor.shape)}\n".encode())
        digest.update(tensor.detach().to("cpu", torch.float32).contiguous().numpy().tobytes())
    return "sha256:" + digest.hexdigest()


def save_adapter(path: Path, injection: Injection, base: Base, lock: Lock, probes: Sequence[Probe]) -> str:
    """Writes the adapter to `path` as a whole or not at all.

    Returns:
        Its digest.

    Raises:
        StorageError: Nothing was written, and an adapter already at `path` is untouched.
    """
    method = find_method(injection.config.type)
    saved = method.saved(injection)
    config = with_names(injection, saved.config)
    digest = adapter_digest(config, saved.tensors)
    targets = short_targets(injection.model, [name for name in injection.layers if name])
    # peft loads the base by this name: a hub id as it is, anything else as the folder that holds the base.
    is_hub_id = base.source.ref.count("/") == 1 and not Path(base.source.ref).exists()
    base_ref = base.source.ref if is_hub_id else str(base.source.folder.resolve())
    peft_config = method.peft_config(config, targets, base_ref)
    with files.new_folder(path) as folder:
        write_peft(folder, peft_config, saved.tensors)
        about: dict[str, Any] = {
            "format": FORMAT,
            "digest": digest,
            "method": config.model_dump(mode="json"),
            "lock": lock.as_json(),
            "probes": [probe.as_json() for probe in probes],
        }
        files.write_json(folder / LAMINA_FILE, about)
    return digest


def read_adapter(path: Path) -> Adapter:
    """Reads an adapter folder, lamina's or peft's.

    Raises:
        AdapterError: A file is missing or damaged, or the tensors are not those that the digest was made of.
    """
    peft_config = read_peft_config(path)
    tensors = read_tensors(path)
    base_ref = str(peft_config.get("base_model_name_or_path") or "")
    about_path = path / LAMINA_FILE
    if not about_path.is_file():
        return Adapter(path, method_config(peft_config), base_ref, tensors, None, [])
    try:
        about = json.loads(about_path.read_text(encoding="utf-8"))
        # lamina's own record says which method it is; in peft's, two methods may look alike.
        config = METHOD_CONFIGS[about["method"]["type"]].model_validate(about["method"])
        lock, probes = Lock.from_json(about["lock"]), [Probe.from_json(probe) for probe in about["probes"]]
        recorded = about["digest"]
    except (ValueError, KeyError, TypeError) as error:
        raise AdapterError(f"{about_path}: is not readable ({error}). Fix: copy the adapter again.") from None
    found = adapter_digest(config, tensors)
    if found != recorded:
        raise AdapterError(
            f"{path}: its tensors or settings were changed after training: the digest is {found}, recorded was "
            f"{recorded}. Fix: copy the adapter again; to use changed tensors as they are, delete {LAMINA_FILE}."
        )
    return Adapter(path, config, base_ref, tensors, lock, probes)


def check_tensors(adapter: Adapter, injection: Injection) -> None:
    """Checks that the adapter's tensors are just those that the model takes, by name and shape.

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
    raise AdapterError(
        f"{adapter.path}: does not fit the model: {'; '.join(parts)}. Fix: load the base it was trained on."
    )
