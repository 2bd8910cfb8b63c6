"""Loads a base in 4 or 8 bits, weight by weight, so that it never exists in 16 bits as a whole, and keeps what it made.

transformers' own loader does the work, with its quantizers for bitsandbytes (`quantizers.py`). What they leave, modules
of bitsandbytes, is taken over into ours (`compute/weights/packed.py`) as it is, without a copy.

    CACHE/quantized/KEY/   a folder in the format of transformers and bitsandbytes, and
        lamina_quantization.json   digest of the packed weights, and the error of each
        loftq.safetensors          with LoftQ: the factors that belong to them
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
from lamina.compute.weights.packed import PackedLinear, bitsandbytes
from lamina.config.quantization import QuantizationConfig
from lamina.machine.quiet import quiet_transformers
from lamina.models.architecture import check_architecture
from lamina.models.fingerprint import fingerprint_base, weight_files
from lamina.models.quantized.quantizers import Record, StreamingConfig, check_packs_enough, take_over
from lamina.models.read import read_model, skeleton
from lamina.progress import Notify
from lamina.quantization.loftq import LoftqPlan

# Given a model without weights, which of its weights to split.
PlanLoftq = Callable[[PreTrainedModel], LoftqPlan]

ABOUT_FILE = "lamina_quantization.json"
LOFTQ_FILE = "loftq.safetensors"

# Of the form in which quantized bases are kept. Shards are small, because writing one takes its size in memory.
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
    """A base whose linear layers, but for the head, are packed.

    Attributes:
        model: It.
        files: Where its weights were read from.
        digest: Of the packed weights; None where they lie in the model's own folder, whose digest covers them.
        errors: Module -> |W - Q| / |W| (Frobenius norms); with LoftQ then the same with s B A, after each round. Empty
            where the weights from before are not known.
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
    """Loads a base packed.

    Args:
        folder: The model's.
        config: How to quantize, or how it is.
        stored: Whether it is quantized already. If not, its quantized form is kept in the user's cache.
        dtype: Of products, and of what is not quantized.
        device: Where to put it.
        notify: Told before anything that takes a while.
        plan_loftq: What LoftQ splits, if it is to; not for a base that is quantized already.

    Raises:
        ConfigError: bitsandbytes is missing, or the settings do not fit the model.
        ModelError: The model cannot be read.
        StorageError: The quantized form cannot be kept; nothing of it is.
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
            with FileLock(f"{cached}.lock"):
                if not cached.is_dir():  # another process may have made it while this one waited
                    notify(f"Quantizing the base to {config.bits} bits, once ...")
                    streaming = StreamingConfig(config, dtype, weight_files(folder), loftq)
                    with files.new_folder(cached) as aside:
                        _quantize(folder, streaming, dtype, settings, aside)
                    gc.collect()  # the model that was written is read back, so that every start is alike
    model = take_over(read_model(cached, dtype, **settings), dtype)
    for name in loftq.modules if loftq else ():
        packed = model.get_submodule(name)
        if isinstance(packed, PackedLinear):  # others are left as they are, with nothing to make up for
            packed.correction = Correction(cached / LOFTQ_FILE, name)
    about = json.loads((cached / ABOUT_FILE).read_text(encoding="utf-8"))
    for note in about.get("notes", []):
        notify(note)
    return Quantized(model, weight_files(cached), about["digest"], about["errors"])


def write_quantized(folder: Path, config: QuantizationConfig, dtype: torch.dtype, chosen: Path, out: Path) -> None:
    """Writes a base in 4 bits as transformers and bitsandbytes keep it, with numbers that were chosen for it.

    Args:
        folder: The model in 16 bits.
        config: How to quantize; 4 bits.
        dtype: Of what is not quantized.
        chosen: A folder with packed weights, MODULE.safetensors; others are rounded to the nearest.
        out: A folder to write to.

    Raises:
        ConfigError: The settings do not fit the model.
        ModelError: The model cannot be read.
    """
    streaming = StreamingConfig(config, dtype, weight_files(folder), None, chosen)
    _quantize(folder, streaming, dtype, {"device_map": {"": torch.device("cpu")}}, out)


def _quantize(
    folder: Path, streaming: StreamingConfig, dtype: torch.dtype, settings: dict[str, Any], aside: Path
) -> None:
    """Reads the model, packing weight by weight, and writes what came of it."""
    notes: list[str] = []
    model = read_model(folder, dtype, notes.append, quantization_config=streaming, **settings)
    quantizer: Any = model.hf_quantizer
    _save(model, aside)
    _save_record(take_over(model, dtype), quantizer.record, notes, aside)


def _key(folder: Path, config: QuantizationConfig, dtype: torch.dtype, loftq: LoftqPlan | None) -> str:
    """Names a quantized base by all that it is made of."""
    fingerprint = fingerprint_base(folder)
    made_of = [fingerprint.tensors, fingerprint.config, config.model_dump(), str(dtype), _VERSION]
    made_of += [loftq.as_json()] if loftq else []
    return hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()[:32]


def _save(model: PreTrainedModel, folder: Path) -> None:
    """Writes it as bitsandbytes and transformers keep such models, with their own settings in config.json."""
    quantizer: Any = model.hf_quantizer
    # The quantizer's own copy of the settings, which knows what was left as it is.
    plain = BitsAndBytesConfig(**{name: getattr(quantizer.quantization_config, name) for name in _PLAIN})
    model.config.quantization_config = quantizer.quantization_config = plain  # pyright: ignore[reportAttributeAccessIssue]
    with quiet_transformers():
        model.save_pretrained(folder, max_shard_size=_SHARD)


def _save_record(model: PreTrainedModel, record: Record, notes: list[str], folder: Path) -> None:
    """Writes what is known of the quantized weights beside them."""
    files.write_json(folder / ABOUT_FILE, {"digest": _digest(model), "errors": record.errors, "notes": notes})
    if record.factors:
        tensors = {
            f"{name}.{part}": tensor.cpu().contiguous()
            for name, factors in record.factors.items()
            for part, tensor in zip("AB", factors, strict=True)
        }
        save_file(tensors, folder / LOFTQ_FILE)


def _digest(model: PreTrainedModel) -> str:
    """SHA-256 over the packed weights and their scales."""
    digest = hashlib.sha256()
    for name, module in model.named_modules():
        if isinstance(module, PackedLinear):
            for key, buffer in module.named_buffers():
                digest.update(f"{name}.{key} {list(buffer.shape)}\n".encode())
                digest.update(buffer.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return "sha256:" + digest.hexdigest()
