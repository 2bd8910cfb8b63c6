"""Digests of a base model's tensors and config, which bind an adapter to the exact base that it was trained on."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lamina.cache.folder import IdentityCache
from lamina.errors import ModelError
from lamina.models.rope_words import without_repeats

# Keys of config.json that describe how a model was saved or is run, not what it computes.
_VOLATILE_KEYS = {
    "_attn_implementation",
    "_commit_hash",
    "_name_or_path",
    "dtype",
    "torch_dtype",
    "transformers_version",
    "use_cache",
}
_CHUNK = 16 * 2**20


@dataclass(frozen=True)
class BaseFingerprint:
    """Digests of a base model on disk.

    Attributes:
        tensors: Digest of every tensor's name, dtype, shape and bytes, independent of how they are sharded.
        config: Digest of the keys of config.json that affect the computation.
    """

    tensors: str
    config: str

    def as_json(self) -> dict[str, str]:
        """Converts to plain data."""
        return asdict(self)


def fingerprint_base(folder: Path) -> BaseFingerprint:
    """Computes the digests of a model folder; each file's digests are cached until the file changes.

    Raises:
        ModelError: The folder has no safetensors weights, or a damaged file.
    """
    cache = IdentityCache("fingerprints")
    digests: dict[str, str] = {}
    for path in weight_files(folder):
        known = cache.get(path)
        if known is None:
            known = dict(_tensor_digests(path))
            cache.put(path, known)
        digests.update(known)
    lines = "\n".join(f"{name} {digest}" for name, digest in sorted(digests.items()))
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return BaseFingerprint(_sha256(lines), _sha256(_canonical(_without_volatile(config))))


def weight_files(folder: Path) -> list[Path]:
    """Lists the safetensors files of a model folder, as named in its index.

    Raises:
        ModelError: There are none; the message names the files that it found instead.
    """
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        missing = [name for name in names if not (folder / name).is_file()]
        if missing:
            raise ModelError(
                f"{folder}: {index.name} names {missing[0]}, which does not exist. Fix: download the model again."
            )
        return [folder / name for name in names]
    single = folder / "model.safetensors"
    if single.is_file():
        return [single]
    found = sorted(
        path.name for path in folder.glob("*") if path.suffix in {".bin", ".pt", ".pth", ".gguf", ".safetensors"}
    )
    hint = (
        "pickled weights are never read; convert them to safetensors"
        if any(name.endswith((".bin", ".pt", ".pth")) for name in found)
        else "name the .gguf file itself"
        if any(name.endswith(".gguf") for name in found)
        else "give a folder with config.json and model.safetensors"
    )
    raise ModelError(f"{folder}: has no model.safetensors (found: {', '.join(found) or 'no weights'}). Fix: {hint}.")


def _tensor_digests(path: Path) -> Iterator[tuple[str, str]]:
    """Computes each tensor's dtype, shape and SHA-256, directly from the safetensors file."""
    try:
        with path.open("rb") as file:
            (header_bytes,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(header_bytes))
            for name, entry in sorted(header.items(), key=lambda item: item[1].get("data_offsets", [0])[0]):
                if name == "__metadata__":
                    continue
                begin, end = entry["data_offsets"]
                file.seek(8 + header_bytes + begin)
                digest = hashlib.sha256()
                left = end - begin
                while left:
                    chunk = file.read(min(_CHUNK, left))
                    if not chunk:
                        raise ValueError("the file ends early")
                    digest.update(chunk)
                    left -= len(chunk)
                yield name, f"{entry['dtype']} {entry['shape']} {digest.hexdigest()}"
    except (struct.error, ValueError, KeyError) as error:
        raise ModelError(
            f"{path}: not a complete safetensors file ({error}). Fix: download or save it again."
        ) from None


def _without_volatile(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            key: _without_volatile(item) for key, item in without_repeats(value).items() if key not in _VOLATILE_KEYS
        }
    return value


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def _sha256(text: str) -> str:
    return "sha256:" + hashlib.sha256(text.encode("utf-8")).hexdigest()
