"""HF PEFT's on-disk format: `adapter_config.json` and `adapter_model.safetensors`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from lamina.config import MethodConfig
from lamina.errors import AdapterError
from lamina.files import write_json
from lamina.methods.base import all_methods

CONFIG_FILE = "adapter_config.json"
TENSORS_FILE = "adapter_model.safetensors"


def write_peft(folder: Path, peft_config: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> None:
    """Writes an adapter as HF peft does. Tensors are stored in float32, indices as the integers that they are."""
    write_json(folder / CONFIG_FILE, dict(peft_config))
    # Copies, because safetensors takes no two names for one memory, and layers may share a tensor.
    stored = {
        name: tensor.detach().to("cpu", _stored_dtype(tensor), copy=True).contiguous()
        for name, tensor in tensors.items()
    }
    save_file(stored, folder / TENSORS_FILE, metadata={"format": "pt"})


def read_peft_config(folder: Path) -> dict[str, Any]:
    """Reads `adapter_config.json`.

    Raises:
        AdapterError: It is not there or not JSON.
    """
    path = folder / CONFIG_FILE
    if not path.is_file():
        raise AdapterError(
            f"{folder}: holds no {CONFIG_FILE}, so it is no adapter. Fix: name a run directory or an adapter folder."
        )
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise AdapterError(f"{path}: is not JSON ({error}). Fix: copy the adapter again.") from None


def read_tensors(folder: Path) -> dict[str, torch.Tensor]:
    """Reads the adapter's tensors, by their names in the file: float32, and indices as the integers that they are.

    Raises:
        AdapterError: The file is missing or damaged. Pickled adapters (`.bin`) are never read.
    """
    path = folder / TENSORS_FILE
    if not path.is_file():
        pickled = (folder / "adapter_model.bin").is_file()
        fix = "save it again with safe_serialization=True" if pickled else "copy the adapter again"
        raise AdapterError(f"{folder}: holds no {TENSORS_FILE}{' but a pickled one' if pickled else ''}. Fix: {fix}.")
    try:
        return {name: tensor.to(_stored_dtype(tensor)) for name, tensor in load_file(path).items()}
    except (SafetensorError, ValueError) as error:
        raise AdapterError(f"{path}: is damaged ({error}). Fix: copy the adapter again.") from None


def method_config(peft_config: Mapping[str, Any]) -> MethodConfig:
    """The method and its fields that a peft configuration stands for.

    Methods are asked in the order of their names, and a `fallback` after all others.

    Raises:
        AdapterError: No method of lamina reads it.
    """
    for method in sorted(all_methods().values(), key=lambda method: method.fallback):
        if method.reads_peft(peft_config):
            return method.from_peft(peft_config)
    known = ", ".join(all_methods())
    raise AdapterError(f"the adapter's peft_type {peft_config.get('peft_type')!r} is not supported; methods: {known}.")


def _stored_dtype(tensor: torch.Tensor) -> torch.dtype:
    return torch.float32 if tensor.is_floating_point() else tensor.dtype
