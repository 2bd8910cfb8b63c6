"""An adapter folder as the registry sees it: its files, its lock, and its digest, checked without torch.

`lamina.json` records the digest of what an adapter computes. It is computed here again from the tensors' bytes, as
`adapters/adapter.py` does it from the tensors, so that a changed adapter does not become a version.
"""

from __future__ import annotations

import array
import hashlib
import json
import struct
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from lamina.errors import AdapterError, NewerVersionError, check_format
from lamina.registry.digests import PREFIX, is_digest

CONFIG_FILE = "adapter_config.json"
TENSORS_FILE = "adapter_model.safetensors"
LAMINA_FILE = "lamina.json"
_FORMAT = 1

# What a version keeps of an adapter folder; trainers leave much else there, pickles among it.
ADAPTER_FILES = (CONFIG_FILE, TENSORS_FILE, LAMINA_FILE)

_LONGEST_HEADER = 2**26
_COPY = "copy the adapter again"


@dataclass(frozen=True)
class AdapterFiles:
    """What an adapter folder says.

    Attributes:
        folder: It.
        names: Of the files that a version keeps.
        digest: Of what the adapter computes; None where `lamina.json` is not there to say it.
        method: Name of the method, or peft's type.
        settings: Of the method, as they are stored; None without `lamina.json`.
        lock: What it is bound to; None without `lamina.json`.
        probes: Its probes.
        base_ref: The base that peft's file names.
    """

    folder: Path
    names: tuple[str, ...]
    digest: str | None
    method: str
    settings: dict[str, Any] | None
    lock: dict[str, Any] | None
    probes: list[Any]
    base_ref: str


def read_adapter_files(folder: Path) -> AdapterFiles:
    """Reads an adapter folder, lamina's or peft's.

    Raises:
        AdapterError: A file is missing, damaged, or changed since the digest was made.
        NewerVersionError: It has a format that this version does not know.
    """
    peft = _read_json(folder / CONFIG_FILE)
    if not (folder / TENSORS_FILE).is_file():
        raise AdapterError(f"{folder}: holds no {TENSORS_FILE}. Fix: {_COPY}; pickled adapters are never read.")
    names = tuple(name for name in ADAPTER_FILES if (folder / name).is_file())
    base_ref = str(peft.get("base_model_name_or_path") or "")
    if LAMINA_FILE not in names:
        return AdapterFiles(folder, names, None, str(peft.get("peft_type") or ""), None, None, [], base_ref)
    path = folder / LAMINA_FILE
    about = _read_json(path)
    try:
        lock, settings, recorded = about["lock"], about["method"], about["digest"]
        check_format(path, about["format"], _FORMAT, str(lock.get("lamina", "")))
        method, probes = str(settings["type"]), list(about["probes"])
    except NewerVersionError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise AdapterError(f"{path}: is not readable ({error}). Fix: {_COPY}.") from None
    found = content_digest(settings, folder / TENSORS_FILE)
    if not is_digest(recorded) or recorded != found:
        raise AdapterError(
            f"{folder}: its tensors or settings were changed after training: the digest is {found}, recorded was "
            f"{str(recorded)[:80]}. Fix: {_COPY}."
        )
    return AdapterFiles(folder, names, recorded, method, settings, lock, probes, base_ref)


def content_digest(settings: Any, tensors: Path) -> str:
    """Computes the digest of an adapter: its settings, and its tensors' names, shapes and values in float32.

    Raises:
        AdapterError: The file of tensors is damaged.
    """
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    try:
        with tensors.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > _LONGEST_HEADER:
                raise ValueError(f"its header has {length} bytes")
            header = json.loads(file.read(length))
            header.pop("__metadata__", None)
            for name, facts in sorted(header.items()):
                begin, end = facts["data_offsets"]
                file.seek(8 + length + begin)
                digest.update(f"{name} {[int(size) for size in facts['shape']]}\n".encode())
                _hash_tensor(file, end - begin, facts["dtype"], digest.update)
    except OSError as error:
        raise AdapterError(f"{tensors}: cannot be read: {error.strerror}. Fix: {_COPY}.") from None
    except (ValueError, KeyError, TypeError, AttributeError, struct.error) as error:
        raise AdapterError(f"{tensors}: is damaged ({error}). Fix: {_COPY}.") from None
    return PREFIX + digest.hexdigest()


def _hash_tensor(file: IO[bytes], size: int, dtype: str, update: Callable[[bytes], None]) -> None:
    while size > 0:
        chunk = file.read(min(size, 2**20))
        if not chunk:
            raise ValueError("it ends too early")
        size -= len(chunk)
        update(_as_float32(chunk, dtype))


def _as_float32(chunk: bytes, dtype: str) -> bytes:
    """Returns little-endian values as float32."""
    if dtype == "F32":
        return chunk
    if dtype == "BF16":
        wide = bytearray(2 * len(chunk))
        wide[2::4], wide[3::4] = chunk[::2], chunk[1::2]
        return bytes(wide)
    codes = {"F16": "e", "F64": "d", "I64": "q", "I32": "i", "I16": "h", "I8": "b", "U8": "B", "BOOL": "?"}
    if dtype not in codes:
        raise ValueError(f"the dtype {dtype!r} is not known")
    count = len(chunk) // struct.calcsize(f"<{codes[dtype]}")
    values = array.array("f", [float(value) for value in struct.unpack(f"<{count}{codes[dtype]}", chunk)])
    if sys.byteorder == "big":
        values.byteswap()
    return values.tobytes()


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        message = f"{path.parent}: holds no {path.name}, so it is no adapter. Fix: name a run or an adapter folder."
        raise AdapterError(message) from None
    except (OSError, ValueError) as error:
        raise AdapterError(f"{path}: is not readable ({error}). Fix: {_COPY}.") from None
    if not isinstance(value, dict):
        raise AdapterError(f"{path}: is no JSON object. Fix: {_COPY}.")
    return value
