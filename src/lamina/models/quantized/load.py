"""Loads a base in 4 or 8 bits, weight by weight, so that it is never in memory in 16 bits as a whole, and caches it.

transformers' own loader does this, with its quantizers for bitsandbytes (`quantizers.py`). The modules of bitsandbytes
that it creates are then replaced by ours (`compute/weights/packed.py`) with the same tensors, without a copy.

    CACHE/quantized/KEY/   a folder in the format of transformers and bitsandbytes, and
        lamina_quantization.json   digest of the packed weights, and the error of each
        experts-NAME.safetensors   packed experts (`experts.py`)
        loftq.safetensors          with LoftQ: the factors of each weight
"""

from __future__ import annotations

import gc
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from safetensors.torch import save_file
from transformers import BitsAndBytesConfig, PreTrainedModel

from lamina import files
from lamina.cache.folder import cache_folder, hold, writing_cache
from lamina.compute.weights.correction import Correction
from lamina.compute.weights.experts import PackedStack
from lamina.compute.weights.packed import PackedLinear, bitsandbytes
from lamina.config.quantization import QuantizationConfig
from lamina.machine.quiet import quiet_transformers
from lamina.models.architecture import check_architecture
from lamina.models.fingerprint import fingerprint_base, weight_files
from lamina.models.quantized.experts import put_back
from lamina.models.quantized.quantizers import Record, StoredConfig, StreamingConfig, check_packs_enough, take_over
from lamina.models.read import read_model, skeleton
from lamina.progress import Notify
from lamina.quantization.loftq import LoftqPlan

# Maps a model without weights to the plan of which weights LoftQ splits.
PlanLoftq = Callable[[PreTrainedModel], LoftqPlan]

ABOUT_FILE = "lamina_quantization.json"
LOFTQ_FILE = "loftq.safetensors"

# Version of the cached format. Shards are small, because writing a shard takes its size in memory.
_VERSION = "2"
_SHARD = "500MB"
_PLAIN = (
    "load_in_4bit",
    "load_in_8bit",
    "bnb_4bit_compute_dtype",
    "bnb_4bit_quant_type",
    "bnb_4bit_use_double_quant",
    "llm_int8_skip_modules",
)


@dataclass(frozen=True)
class Quantized:
    """A base whose linear layers, except the head, are packed.

    Attributes:
        model: The model.
        files: The files that its weights were read from.
        digest: Digest of the packed weights; None if they are in the model's own folder, whose digest covers them.
        errors: Module -> |W - Q| / |W| (Frobenius norms), and with LoftQ |W - Q - s B A| / |W| after each round. Empty
            if the original weights are not known.
    """

    model: PreTrainedModel
    files: list[Path]
    digest: str | None
    errors: Mapping[str, list[float]]


def load_packed(
    folder: Path,
    config: QuantizationConfig,
    stored: bool,
    dtype: torch.dtype,
    device: torch.device,
    notify: Notify,
    plan_loftq: PlanLoftq | None = None,
) -> Quantized:
    """Loads a base with packed weights.

    Args:
        folder: The model folder.
        config: How to quantize the base, or how it is quantized.
        stored: Whether the base is already quantized. If not, its quantized form is saved in the user's cache.
        dtype: The dtype of products, and of weights that are not quantized.
        device: The device to load it on.
        notify: Called with a message before anything that takes a while.
        plan_loftq: Computes which weights LoftQ splits; None without LoftQ or for an already quantized base.

    Raises:
        ConfigError: bitsandbytes is missing, or the settings do not fit the model.
        ModelError: The model cannot be loaded.
        StorageError: The quantized form cannot be saved; no part of it is.
    """
    bitsandbytes()
    settings: dict[str, Any] = {"device_map": {"": device}}
    if stored:
        model = take_over(read_model(folder, dtype, notify, **settings), dtype)
        return Quantized(model, weight_files(folder), None, {})
    check_architecture(folder)
    bare = skeleton(folder)
    check_packs_enough(bare, config)
    loftq = plan_loftq(bare) if plan_loftq else None
    cached = cache_folder() / "quantized" / _key(folder, config, dtype, loftq)
    hold(cached)
    if not cached.is_dir():
        with writing_cache(cached, "quantizing the base"):
            cached.parent.mkdir(parents=True, exist_ok=True)
            notify(f"Quantizing the base to {config.bits} bits, once ...")
            with FileLock(f"{cached}.lock"):
                if not cached.is_dir():  # another process may have quantized it while this one waited
                    with files.new_folder(cached) as new:
                        streaming = StreamingConfig(config, dtype, weight_files(folder), loftq, experts=new)
                        _quantize(folder, streaming, dtype, settings, new)
                    gc.collect()  # frees the model: it is loaded from the cache, so that every run starts the same way
    model = take_over(read_model(cached, dtype, **settings), dtype)
    put_back(model, cached, config, dtype)
    for name in loftq.modules if loftq else ():
        packed = model.get_submodule(name)
        if isinstance(packed, PackedLinear):  # others are not quantized, so they have no error
            packed.correction = Correction(cached / LOFTQ_FILE, name)
    about = json.loads((cached / ABOUT_FILE).read_text(encoding="utf-8"))
    for note in about.get("notes", []):
        notify(note)
    return Quantized(model, weight_files(cached), about["digest"], about["errors"])


def write_quantized(folder: Path, config: QuantizationConfig, dtype: torch.dtype, chosen: Path, out: Path) -> None:
    """Writes a base in 4 bits in the format of transformers and bitsandbytes, with given packed weights.

    Args:
        folder: The model in 16 bits.
        config: How to quantize, with 4 bits.
        dtype: The dtype of weights that are not quantized.
        chosen: A folder with packed weights, MODULE.safetensors; other weights are rounded to nearest.
        out: The folder to write to.

    Raises:
        ConfigError: The settings do not fit the model.
        ModelError: The model cannot be loaded.
    """
    streaming = StreamingConfig(config, dtype, weight_files(folder), None, chosen)
    _quantize(folder, streaming, dtype, {"device_map": {"": torch.device("cpu")}}, out)


def _quantize(
    folder: Path, streaming: StreamingConfig, dtype: torch.dtype, settings: dict[str, Any], out: Path
) -> None:
    """Loads the model, quantizing weight by weight, and saves the result in `out`."""
    notes: list[str] = []
    model = read_model(folder, dtype, notes.append, quantization_config=streaming, **settings)
    quantizer: Any = model.hf_quantizer
    _save(model, out)
    model = take_over(model, dtype)
    put_back(model, out, QuantizationConfig(**streaming.lamina), dtype)
    _save_record(model, quantizer.record, notes, out)


def _key(folder: Path, config: QuantizationConfig, dtype: torch.dtype, loftq: LoftqPlan | None) -> str:
    """Computes the cache key of a quantized base, from everything that determines it."""
    fingerprint = fingerprint_base(folder)
    made_of = [fingerprint.tensors, fingerprint.config, config.model_dump(), str(dtype), _VERSION]
    made_of += [loftq.as_json()] if loftq else []
    return hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()[:32]


def _save(model: PreTrainedModel, folder: Path) -> None:
    """Saves the model in the format of bitsandbytes and transformers, with their own settings in config.json."""
    quantizer: Any = model.hf_quantizer
    # From the quantizer's own copy of the settings, which has the modules that were not quantized.
    used = quantizer.quantization_config
    settings = {name: getattr(used, name) for name in _PLAIN}
    plain = (
        StoredConfig(_as_json(settings), used.llm_int8_skip_modules)
        if quantizer.experts
        else BitsAndBytesConfig(**settings)
    )
    model.config.quantization_config = quantizer.quantization_config = plain  # pyright: ignore[reportAttributeAccessIssue]
    # Of several processes, transformers saves in the first alone; here, whichever holds the lock of the cache saves.
    model.should_save_on_this_rank = lambda is_main_process: True
    with quiet_transformers():
        model.save_pretrained(folder, max_shard_size=_SHARD)


def _as_json(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Writes a dtype as its name, which bitsandbytes' settings take too."""
    return {k: str(v).removeprefix("torch.") if isinstance(v, torch.dtype) else v for k, v in settings.items()}


def _save_record(model: PreTrainedModel, record: Record, notes: list[str], folder: Path) -> None:
    """Saves the digest, the errors and LoftQ's factors next to the quantized weights."""
    files.write_json(folder / ABOUT_FILE, {"digest": _digest(model), "errors": record.errors, "notes": notes})
    if record.factors:
        tensors = {
            f"{name}.{part}": tensor.cpu().contiguous()
            for name, factors in record.factors.items()
            for part, tensor in zip("AB", factors, strict=True)
        }
        save_file(tensors, folder / LOFTQ_FILE)


def _digest(model: PreTrainedModel) -> str:
    """Computes the SHA-256 of the packed weights and their scales."""
    digest = hashlib.sha256()
    for name, module in model.named_modules():
        if isinstance(module, PackedLinear | PackedStack):
            for key, buffer in module.named_buffers():
                digest.update(f"{name}.{key} {list(buffer.shape)}\n".encode())
                digest.update(buffer.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return "sha256:" + digest.hexdigest()
