"""Loads a base in 4 or 8 bits, weight by weight, so that it never exists in 16 bits as a whole.

transformers' own loader does the work, with its quantizers for bitsandbytes. What they leave, modules of bitsandbytes,
is taken over into ours (`quantization/packed.py`) as it is, without a copy.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from torch import nn
from transformers import BitsAndBytesConfig, PreTrainedModel
from transformers.quantizers.auto import register_quantizer
from transformers.quantizers.quantizer_bnb_4bit import Bnb4BitHfQuantizer
from transformers.quantizers.quantizer_bnb_8bit import Bnb8BitHfQuantizer

from lamina import files
from lamina.config.quantization import QuantizationConfig
from lamina.errors import ConfigError, Problem, StorageError
from lamina.models.cache import cache_folder
from lamina.models.fingerprint import fingerprint_base, weight_files
from lamina.models.pages import drop_file_pages
from lamina.models.quiet import quiet_transformers
from lamina.models.read import read_model
from lamina.models.source import Notify
from lamina.quantization.packed import EightBitLinear, FourBitLinear, PackedLinear, bitsandbytes

FIELD = "quantization"

# Of the form in which quantized bases are kept. Shards are small, because writing one takes its size in memory.
_VERSION = "1"
_SHARD = "500MB"
_PLAIN = (
    "load_in_4bit",
    "load_in_8bit",
    "bnb_4bit_compute_dtype",
    "bnb_4bit_quant_type",
    "bnb_4bit_use_double_quant",
    "llm_int8_skip_modules",
)


def load_packed(
    folder: Path,
    config: QuantizationConfig,
    stored: bool,
    dtype: torch.dtype,
    device: torch.device,
    notify: Notify,
) -> PreTrainedModel:
    """A model whose linear layers, but for the head, are packed.

    Args:
        folder: The model's.
        config: How to quantize, or how it is.
        stored: Whether it is quantized already. If not, its quantized form is kept in the user's cache.
        dtype: Of products, and of what is not quantized.
        device: Where to put it.
        notify: Told before anything that takes a while.

    Raises:
        ConfigError: bitsandbytes is missing, or the settings do not fit the model.
        ModelError: The model cannot be read.
        StorageError: The quantized form cannot be kept; nothing of it is.
    """
    bitsandbytes()
    settings: dict[str, Any] = {"device_map": {"": device}}
    if stored:
        return take_over(read_model(folder, dtype, **settings), dtype)
    cached = cache_folder() / "quantized" / _key(folder, config, dtype)
    try:
        cached.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{cached}.lock"):
            if cached.is_dir():
                return take_over(read_model(cached, dtype, **settings), dtype)
            notify(f"Quantizing the base to {config.bits} bits, once ...")
            streaming = StreamingConfig(config, dtype, weight_files(folder))
            model = read_model(folder, dtype, quantization_config=streaming, **settings)
            with files.new_folder(cached) as aside:
                _save(model, aside, streaming)
            return take_over(model, dtype)
    except OSError as error:
        if isinstance(error, StorageError):
            raise
        raise StorageError.wrap(error, cached, "quantizing the base") from error


def _key(folder: Path, config: QuantizationConfig, dtype: torch.dtype) -> str:
    """Names a quantized base by all that it is made of."""
    fingerprint = fingerprint_base(folder)
    made_of = [fingerprint.tensors, fingerprint.config, config.model_dump(), str(dtype), _VERSION]
    return hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()[:32]


def _save(model: PreTrainedModel, folder: Path, streaming: StreamingConfig) -> None:
    """Writes it as bitsandbytes and transformers keep such models, with their own settings in config.json."""
    plain = BitsAndBytesConfig(**{name: getattr(streaming, name) for name in _PLAIN})
    quantizer: Any = model.hf_quantizer
    model.config.quantization_config = quantizer.quantization_config = plain  # pyright: ignore[reportAttributeAccessIssue]
    with quiet_transformers():
        model.save_pretrained(folder, max_shard_size=_SHARD)


class StreamingConfig(BitsAndBytesConfig):
    """The settings of bitsandbytes, with what transformers has no field for."""

    def __init__(self, config: QuantizationConfig, dtype: torch.dtype, files: Sequence[Path]) -> None:
        """
        Args:
            config: How to quantize.
            dtype: What everything else is held in.
            files: Where the weights come from.
        """
        super().__init__(
            load_in_4bit=config.bits == 4,
            load_in_8bit=config.bits == 8,
            bnb_4bit_compute_dtype=dtype,
            bnb_4bit_quant_type=config.quant_type,
            bnb_4bit_use_double_quant=config.double_quant,
        )
        self.quant_method: Any = f"lamina_{config.bits}bit"
        # Plain data, as transformers prints and copies such settings.
        self.lamina = config.model_dump()
        self.files = [str(path) for path in files]


class _Streaming:
    """What both quantizers do besides."""

    quantization_config: Any  # a StreamingConfig

    def _process_model_before_weight_loading(self, model: PreTrainedModel, *args: Any, **kwargs: Any) -> None:
        config = QuantizationConfig(**self.quantization_config.lamina)
        kept = _kept_modules(model, config)
        self.quantization_config.llm_int8_skip_modules = kept
        super()._process_model_before_weight_loading(model, *args, **kwargs)  # pyright: ignore[reportAttributeAccessIssue]
        for name, module in model.named_modules():
            if type(module).__name__ == "Linear4bit":
                weight: Any = module.weight
                if weight.numel() % config.blocksize:
                    shape = " x ".join(map(str, weight.shape))
                    message = f"blocksize {config.blocksize} does not divide the weights of {name} ({shape})."
                    fix = "use a smaller blocksize, or name it in quantization.modules_to_not_convert"
                    raise ConfigError(Problem(f"{FIELD}.blocksize", message, fix))
                weight.blocksize = config.blocksize

    def get_quantize_ops(self) -> Any:
        operation: Any = super().get_quantize_ops()  # pyright: ignore[reportAttributeAccessIssue]
        convert: Callable[..., Any] = operation.convert

        def convert_and_drop(*args: Any, **kwargs: Any) -> Any:
            result = convert(*args, **kwargs)
            # The pages of the file that were read would count beside what was made of them.
            drop_file_pages(map(Path, self.quantization_config.files))
            return result

        operation.convert = convert_and_drop
        return operation


@register_quantizer("lamina_4bit")
class _FourBits(_Streaming, Bnb4BitHfQuantizer):
    pass


@register_quantizer("lamina_8bit")
class _EightBits(_Streaming, Bnb8BitHfQuantizer):
    pass


def take_over(model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """Replaces every linear module of bitsandbytes by one of ours with the same tensors.

    Args:
        model: As transformers' quantizer for bitsandbytes loaded it.
        dtype: What weights are turned back to.

    Returns:
        The same model.
    """
    found = [(name, module) for name, module in model.named_modules() if type(module).__name__ in _TAKERS]
    for name, module in found:
        model.set_submodule(name, _TAKERS[type(module).__name__](module, dtype))
    quantizer: Any = getattr(model, "hf_quantizer", None)
    if quantizer is not None:
        # What makes transformers refuse to move, train or save a model whose modules it takes for those of others.
        quantizer.remove_quantization_config(model)
        for flag in ("is_loaded_in_4bit", "is_loaded_in_8bit"):
            if hasattr(model, flag):
                setattr(model, flag, False)
    conversions: Any = getattr(model, "_weight_conversions", None)
    if conversions:  # saving would undo what reading did, and what made tensors of bitsandbytes cannot be undone
        loaded_otherwise = [c for c in conversions if not any(hasattr(op, "hf_quantizer") for op in _operations(c))]
        model._weight_conversions = loaded_otherwise  # pyright: ignore[reportArgumentType, reportAttributeAccessIssue]
    return model


def _operations(conversion: Any) -> Sequence[Any]:
    return getattr(conversion, "operations", ())


def _take_4bit(module: Any, dtype: torch.dtype) -> PackedLinear:
    weight = module.weight
    return FourBitLinear(module.in_features, module.out_features, module.bias, dtype, weight.data, weight.quant_state)


def _take_8bit(module: Any, dtype: torch.dtype) -> PackedLinear:
    scales = module.weight.SCB if module.weight.SCB is not None else module.state.SCB
    return EightBitLinear(module.in_features, module.out_features, module.bias, dtype, module.weight.data, scales)


_TAKERS: dict[str, Callable[[Any, torch.dtype], PackedLinear]] = {"Linear4bit": _take_4bit, "Linear8bitLt": _take_8bit}


def _kept_modules(model: PreTrainedModel, config: QuantizationConfig) -> list[str]:
    """Names of the linear modules that stay as they are."""
    head = model.get_output_embeddings()
    kept = [name for name, module in model.named_modules() if module is head]
    linears = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    for pattern in config.modules_to_not_convert or []:
        chosen = [name for name, _ in model.named_modules() if name == pattern or name.endswith(f".{pattern}")]
        if not chosen:
            short = ", ".join(sorted({name.rpartition(".")[2] for name in linears}))
            message = f"{pattern!r} matches no module of {type(model).__name__}."
            raise ConfigError(Problem(f"{FIELD}.modules_to_not_convert", message, f"use names such as {short}"))
        kept += chosen
    return [re.escape(name) for name in kept]
