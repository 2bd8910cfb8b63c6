"""transformers' quantizers for bitsandbytes, with LoftQ, a record of the errors, and file pages freed early."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn
from transformers import BitsAndBytesConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.quantizer_bnb_4bit import Bnb4BitHfQuantizer
from transformers.quantizers.quantizer_bnb_8bit import Bnb8BitHfQuantizer
from transformers.quantizers.quantizers_utils import should_convert_module

from lamina.compute.ops.experts import Experts
from lamina.compute.weights.packed import EightBitLinear, FourBitLinear, PackedLinear, quantize_4bit
from lamina.config.quantization import QuantizationConfig
from lamina.errors import ConfigError, Problem
from lamina.machine.pages import drop_file_pages
from lamina.models.quantized.experts import pack_stack, packable_experts, save_stack, without_weights
from lamina.models.weights import find_packing, inside_layer
from lamina.quantization.loftq import LoftqPlan, split_weight
from lamina.quantization.pack import pack_weight
from lamina.quantization.report import ENOUGH

FIELD = "quantization"

_TINY = torch.finfo(torch.float32).tiny


@dataclass
class Record:
    """Results of quantizing a model's weights.

    Attributes:
        errors: Module -> |W - Q| / |W| (Frobenius norms), and with LoftQ |W - Q - s B A| / |W| after each round.
        factors: Module -> LoftQ's A and B.
    """

    errors: dict[str, list[float]] = field(default_factory=dict)
    factors: dict[str, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)


class StreamingConfig(BitsAndBytesConfig):
    """The settings of bitsandbytes, plus those that transformers has no field for."""

    def __init__(
        self,
        config: QuantizationConfig,
        dtype: torch.dtype,
        files: Sequence[Path],
        loftq: LoftqPlan | None,
        chosen: Path | None = None,
        experts: Path | None = None,
    ) -> None:
        """
        Args:
            config: How to quantize.
            dtype: The dtype of weights that are not quantized.
            files: The files that the weights are read from.
            loftq: Which weights LoftQ splits before they are quantized.
            chosen: A folder with packed 4-bit weights, MODULE.safetensors, to use instead of rounding to nearest, with
                the same scales.
            experts: An existing folder to save packed experts in; None to leave them as they are.
        """
        super().__init__(
            load_in_4bit=config.bits == 4,
            load_in_8bit=config.bits == 8,
            bnb_4bit_compute_dtype=dtype,
            bnb_4bit_quant_type=config.quant_type,
            bnb_4bit_use_double_quant=config.double_quant,
        )
        self.quant_method: Any = f"lamina_{config.bits}bit"
        # Plain data, because transformers prints and copies these settings.
        self.lamina = config.model_dump()
        self.files = [str(path) for path in files]
        self.loftq = loftq.as_json() if loftq else None
        self.chosen = str(chosen) if chosen else None
        self.experts = str(experts) if experts else None


class _Streaming:
    """The extensions that both quantizers share."""

    quantization_config: Any  # a StreamingConfig
    record: Record
    experts: Mapping[str, Experts] = {}

    def _process_model_before_weight_loading(self, model: PreTrainedModel, *args: Any, **kwargs: Any) -> None:
        config = QuantizationConfig(**self.quantization_config.lamina)
        kept = _kept_modules(model, config)
        self.quantization_config.llm_int8_skip_modules = kept
        super()._process_model_before_weight_loading(model, *args, **kwargs)  # pyright: ignore[reportAttributeAccessIssue]
        for name, module in model.named_modules():
            if type(module).__name__ == "Linear4bit":
                weight: Any = module.weight
                _check_blocksize(name, weight.shape, config)
                weight.blocksize = config.blocksize
        self.experts = packable_experts(model, kept) if self.quantization_config.experts else {}
        _check_experts(self.experts, config)
        self.record = Record()

    def param_needs_quantization(self, model: PreTrainedModel, param_name: str, **kwargs: Any) -> bool:
        own: Any = super()
        return self._experts_of(param_name) is not None or own.param_needs_quantization(model, param_name, **kwargs)

    def _process_model_after_weight_loading(self, model: PreTrainedModel, **kwargs: Any) -> Any:
        without_weights(self.experts)
        return super()._process_model_after_weight_loading(model, **kwargs)  # pyright: ignore[reportAttributeAccessIssue]

    def _experts_of(self, parameter: str) -> Experts | None:
        """The experts whose stacked weights a parameter holds; None if it holds none that are packed."""
        module, _, name = parameter.rpartition(".")
        experts = self.experts.get(module)
        return experts if experts is not None and name in (experts.first, experts.second) else None

    def _pack_experts(self, key: str, weight: torch.Tensor, experts: Experts) -> dict[str, Any]:
        """Saves packed experts, and leaves nothing in their place."""
        stack = pack_stack(weight, experts.transposed, QuantizationConfig(**self.quantization_config.lamina))
        save_stack(Path(self.quantization_config.experts), key, stack)
        difference = sum(
            float((stack.expert(e).dense().float() - weight[e]).square().sum()) for e in range(len(weight))
        )
        self.record.errors[key] = [(difference / max(float(weight.float().square().sum()), _TINY)) ** 0.5]
        drop_file_pages(map(Path, self.quantization_config.files))
        return {key: torch.empty(0, dtype=weight.dtype)}

    def get_quantize_ops(self) -> Any:
        operation: Any = super().get_quantize_ops()  # pyright: ignore[reportAttributeAccessIssue]
        convert: Callable[..., Any] = operation.convert

        def convert_and_report(input_dict: Mapping[str, Any], *, model: PreTrainedModel, **kwargs: Any) -> Any:
            ((key, given),) = input_dict.items()
            name = key.rpartition(".")[0]
            experts = self._experts_of(key)
            if experts is not None:
                return self._pack_experts(key, given[0] if isinstance(given, list) else given, experts)
            module: Any = model.get_submodule(name)
            transposed = issubclass(module.source_cls, Conv1D)  # `convert` transposes it for a linear layer
            weight = given[0] if isinstance(given, list) else given
            rest = self._split(name, weight.T if transposed else weight)
            packed = self._pack(name, rest, module, model.get_parameter_or_buffer(key))
            result = {key: packed} if packed is not None else None
            if result is None:
                result = convert({key: rest.T if transposed else rest}, model=model, **kwargs)
            if name not in self.record.errors:
                self.record.errors[name] = [_error(weight.T if transposed else weight, module, result[key])]
            # Otherwise the pages of the file that were read would stay in memory in addition to the packed weights.
            drop_file_pages(map(Path, self.quantization_config.files))
            return result

        operation.convert = convert_and_report
        return operation

    def _split(self, name: str, weight: torch.Tensor) -> torch.Tensor:
        """Returns the part of a weight to quantize: all of it without LoftQ."""
        loftq = self.quantization_config.loftq
        if loftq is None or name not in loftq["modules"]:
            return weight
        r, scaling = loftq["modules"][name]
        config = QuantizationConfig(**self.quantization_config.lamina)
        parts = split_weight(weight, r, scaling, loftq["rounds"], lambda rest: pack_weight(rest, config).dense())
        self.record.errors[name] = parts.errors
        self.record.factors[name] = (parts.A, parts.B)
        return parts.rest

    def _pack(self, name: str, weight: torch.Tensor, module: Any, empty: Any) -> Any:
        """Makes bitsandbytes' parameter for a weight; None to let transformers make it."""
        return None


@register_quantizer("lamina_4bit")
class _FourBits(_Streaming, Bnb4BitHfQuantizer):
    def _pack(self, name: str, weight: torch.Tensor, module: Any, empty: Any) -> Any:
        config = QuantizationConfig(**self.quantization_config.lamina)
        packed, state = quantize_4bit(weight.contiguous(), config.quant_type, config.double_quant, config.blocksize)
        if self.quantization_config.chosen is not None:
            path = Path(self.quantization_config.chosen, f"{name}.safetensors")
            packed = load_file(path)["packed"].to(weight.device) if path.exists() else packed
        module._is_hf_initialized = True
        return type(empty)(packed, requires_grad=False, **{**vars(empty), "quant_state": state, "bnb_quantized": True})


@register_quantizer("lamina_8bit")
class _EightBits(_Streaming, Bnb8BitHfQuantizer):
    pass


class StoredConfig(BitsAndBytesConfig):
    """The settings of a base in the cache whose experts are packed, and so are not in the files that it loads."""

    def __init__(self, settings: dict[str, Any], kept: list[str], **kwargs: Any) -> None:
        super().__init__(**settings)
        self.quant_method: Any = f"lamina_stored_{4 if settings.get('load_in_4bit') else 8}bit"
        self.settings, self.kept = settings, kept

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], return_unused_kwargs: bool = False, **kwargs: Any) -> Any:
        config = cls(config_dict["settings"], config_dict["kept"])
        return (config, kwargs) if return_unused_kwargs else config

    def to_dict(self) -> dict[str, Any]:
        # transformers takes a dictionary with `load_in_4bit` for one of bitsandbytes alone.
        return {"quant_method": self.quant_method, "settings": self.settings, "kept": self.kept}


class _Stored:
    """A base whose experts are in files of their own."""

    quantization_config: Any  # a StoredConfig

    def _process_model_before_weight_loading(self, model: PreTrainedModel, *args: Any, **kwargs: Any) -> None:
        super()._process_model_before_weight_loading(model, *args, **kwargs)  # pyright: ignore[reportAttributeAccessIssue]
        without_weights(packable_experts(model, self.quantization_config.kept))


@register_quantizer("lamina_stored_4bit")
class _StoredFourBits(_Stored, Bnb4BitHfQuantizer):
    pass


@register_quantizer("lamina_stored_8bit")
class _StoredEightBits(_Stored, Bnb8BitHfQuantizer):
    pass


for _name in ("lamina_stored_4bit", "lamina_stored_8bit"):
    register_quantization_config(_name)(StoredConfig)


def take_over(model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """Replaces every linear module of bitsandbytes by one of ours with the same tensors.

    Args:
        model: The model as loaded by transformers' quantizer for bitsandbytes.
        dtype: The dtype that weights are dequantized to.

    Returns:
        The same model.
    """
    found = [(name, module) for name, module in model.named_modules() if type(module).__name__ in _TAKERS]
    for name, module in found:
        model.set_submodule(name, _TAKERS[type(module).__name__](module, module.weight, dtype))
    quantizer: Any = getattr(model, "hf_quantizer", None)
    if quantizer is not None:
        # With these, transformers would refuse to move, train or save the model.
        quantizer.remove_quantization_config(model)
        for flag in ("is_loaded_in_4bit", "is_loaded_in_8bit"):
            if hasattr(model, flag):
                setattr(model, flag, False)
    conversions: Any = getattr(model, "_weight_conversions", None)
    if conversions:  # saving would revert the conversions of loading, but quantization cannot be reverted
        loaded_otherwise = [c for c in conversions if not any(hasattr(op, "hf_quantizer") for op in _operations(c))]
        model._weight_conversions = loaded_otherwise  # pyright: ignore[reportArgumentType, reportAttributeAccessIssue]
    return model


def _operations(conversion: Any) -> Sequence[Any]:
    return getattr(conversion, "operations", ())


def _error(weight: torch.Tensor, module: Any, quantized: Any) -> float:
    """Computes |W - Q| / |W| for a weight and its quantized form in a module of bitsandbytes."""
    packed = _TAKERS[type(module).__name__](module, quantized, weight.dtype)
    difference = packed.dense().float().sub_(weight)
    return float(difference.norm()) / max(float(weight.float().norm()), _TINY)


def _take_4bit(module: Any, weight: Any, dtype: torch.dtype) -> PackedLinear:
    return FourBitLinear(module.in_features, module.out_features, module.bias, dtype, weight.data, weight.quant_state)


def _take_8bit(module: Any, weight: Any, dtype: torch.dtype) -> PackedLinear:
    scales = weight.SCB if weight.SCB is not None else module.state.SCB
    return EightBitLinear(module.in_features, module.out_features, module.bias, dtype, weight.data, scales)


_TAKERS: dict[str, Callable[[Any, Any, torch.dtype], PackedLinear]] = {
    "Linear4bit": _take_4bit,
    "Linear8bitLt": _take_8bit,
}


def converted_modules(model: PreTrainedModel, config: QuantizationConfig) -> Mapping[str, nn.Module]:
    """Finds the linear layers of a model in 16 bits that `config` would quantize, by name.

    Raises:
        ConfigError: `modules_to_not_convert` matches no module, or `blocksize` does not divide a weight.
    """
    kept = _kept_modules(model, config)
    # Subclasses of nn.Linear are not quantized, as in transformers.
    found = {
        name: module
        for name, module in model.named_modules()
        if (type(module) is nn.Linear or isinstance(module, Conv1D | PackedLinear))
        and should_convert_module(name, kept)
    }
    for name, module in found.items():
        if isinstance(module, PackedLinear):
            shape = torch.Size((module.out_features, module.in_features))
        else:
            shape = module.weight.shape
        _check_blocksize(name, shape, config)
    return found


def check_packs_enough(model: PreTrainedModel, config: QuantizationConfig, experts: bool = True) -> None:
    """Checks that most weights of a model in 16 bits are in linear layers or experts, since only these can be packed.

    Modules that `modules_to_not_convert` names were excluded on purpose and count as packed.

    Args:
        model: A model in 16 bits; may be on the meta device.
        config: How to quantize it.
        experts: Whether experts that are stacked in one tensor are packed too.

    Raises:
        ConfigError: Less than half of the weights would be packed; the message names the other modules.
    """
    chosen = [
        *converted_modules(model, config),
        *(packable_experts(model, _kept_modules(model, config)) if experts else ()),
    ]
    packing = find_packing(model, chosen)
    known = config.modules_to_not_convert or []
    by_choice = [name for name, _ in model.named_modules() if any(_is_under(name, pattern) for pattern in known)]
    if packing.share + find_packing(model, by_choice).share >= ENOUGH:
        return
    large = [name for name, count in packing.left.items() if count > 0.01 * packing.weights]
    names = ", ".join(sorted({inside_layer(name.replace("*", "0")) for name in large}))
    packs = "linear layers and experts" if experts else "linear layers"
    message = (
        f"bits: {config.bits} packs only {packs}. Of {type(model).__name__}, {packing.line()}. So it would take nearly "
        "as much memory as without quantization."
    )
    fix = (
        "remove `quantization` (`offload: true` leaves a base that is too large for memory on disk); or, to pack only "
        f"that much, set `quantization.modules_to_not_convert: [{names}]`"
    )
    raise ConfigError(Problem(f"{FIELD}.bits", message, fix))


def _is_under(name: str, pattern: str) -> bool:
    """Whether a module is selected by the pattern, or inside one that is."""
    return re.search(rf"(^|\.){re.escape(pattern)}(\.|$)", name) is not None


def _check_blocksize(name: str, shape: torch.Size, config: QuantizationConfig) -> None:
    if config.bits == 4 and shape.numel() % config.blocksize:
        message = f"blocksize {config.blocksize} does not divide the weights of {name} ({' x '.join(map(str, shape))})."
        fix = "use a smaller blocksize, or name it in quantization.modules_to_not_convert"
        raise ConfigError(Problem(f"{FIELD}.blocksize", message, fix))


def _check_experts(found: Mapping[str, Experts], config: QuantizationConfig) -> None:
    for name, experts in found.items():
        for key in (experts.first, experts.second):
            _check_blocksize(f"{name}.{key}", getattr(experts.module, key).shape[1:], config)


def _kept_modules(model: PreTrainedModel, config: QuantizationConfig) -> list[str]:
    """Builds patterns for the names of linear modules that are not quantized."""
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
