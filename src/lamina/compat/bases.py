"""The base model behind a script's model: its name, how it is quantized, and lamina's own `Base` if it loaded it."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from transformers import PreTrainedModel

from lamina.config.quantization import QuantizationConfig
from lamina.dialects import values
from lamina.dialects.outcome import Missing, Set
from lamina.dialects.peft import BITS_AND_BYTES
from lamina.errors import ConfigError, LaminaWarning, ModelError, Problem
from lamina.models.copies import bare_copy
from lamina.models.fingerprint import weight_files
from lamina.models.load import Base, load_base, load_tokenizer
from lamina.models.loaded import check_kind, same_weights
from lamina.models.source import ModelSource, find_model
from lamina.models.stored import read_config

# What `lamina.compat.transformers` loaded, by the model that the script holds.
_loaded: weakref.WeakKeyDictionary[PreTrainedModel, _Loaded] = weakref.WeakKeyDictionary()


class _Loaded(NamedTuple):
    """A base that a script loaded: under which name, and on which device by its wish.

    It holds no model, which would never be freed.
    """

    parts: dict[str, Any]
    name: str
    device: str

    @property
    def quantization(self) -> QuantizationConfig | None:
        """How it is quantized."""
        return self.parts["quantization"]


def load(name: str, dtype: str, quantization: QuantizationConfig | None, device: str | None = None) -> PreTrainedModel:
    """Loads a base model with lamina's loader, and keeps what it knows about it.

    Raises:
        ConfigError: There is no such device, or the name or the quantization does not fit.
        ModelError: The model cannot be loaded.
    """
    base = load_base(name, dtype, device, quantization=quantization)
    note(base, name, device)
    return base.model


def note(base: Base, name: str, device: str | None = None) -> None:
    """Notes what is known of a base beside its model, under the model that a script holds."""
    parts = {each.name: getattr(base, each.name) for each in fields(base) if each.name != "model"}
    _loaded[base.model] = _Loaded(parts, name, device or "auto")


def device_for(device_map: Any) -> str | None:
    """Returns the device that a script asks for; None if lamina chooses it.

    Raises:
        ConfigError: The model is to be spread over several devices.
    """
    outcome = values.device_map("auto" if device_map is None else device_map)
    if isinstance(outcome, Set):
        return str(outcome.values["device"])
    if isinstance(outcome, Missing):
        raise ConfigError(Problem("device_map", f"{device_map!r} has no counterpart", f"{outcome.reason}"))
    if device_map is not None and torch.cuda.device_count() > 1:
        warnings.warn(f"device_map={device_map!r}: {outcome.reason}.", LaminaWarning, stacklevel=3)
    return None


def device_of(model: Any) -> str:
    """Returns lamina's `device` for a model that the script loaded; `auto` unless it asked for one."""
    return _loaded[model].device if not isinstance(model, str | Path) and model in _loaded else "auto"


def dtype_name(dtype: Any) -> str:
    """Returns lamina's `dtype` for one of torch or its name: float32, or `auto`.

    Raises:
        ConfigError: lamina does not compute in it.
    """
    outcome = values.dtype(dtype)
    if isinstance(outcome, Missing):
        raise ConfigError(Problem("dtype", f"{dtype!r} has no counterpart", outcome.reason))
    return str(outcome.values["dtype"]) if isinstance(outcome, Set) else "auto"


def name_of(model: Any) -> str:
    """Returns the name or the folder that a model was loaded from.

    Raises:
        ModelError: It came from nowhere that could be read again.
    """
    if isinstance(model, str | Path):
        return str(model)
    if model in _loaded:
        return _loaded[model].name
    name = str(getattr(model.config, "_name_or_path", "") or getattr(model, "name_or_path", ""))
    if not name:
        raise ModelError(
            "the model was made in memory, so there is nothing to read it from. Fix: model.save_pretrained(FOLDER), "
            "tokenizer.save_pretrained(FOLDER), and give FOLDER."
        )
    return name


def in_memory(model: Any, source: ModelSource | None = None) -> Base | None:
    """Returns a bare base over the weights of a model in memory: other modules over the same tensors.

    Args:
        model: A model of transformers, or of `lamina.compat.transformers`.
        source: Where its weights are known to be; None to look where it came from, and to compare.

    Returns:
        The base; None for a model whose weights are read again: a name, one with an adapter of peft on it, quantized by
        another library, spread over several devices, or with other tensors than its files, so that none can compare.

    Raises:
        ConfigError: Its weights are no longer those that it came with.
        ModelError: It came from nowhere, or that is gone.
    """
    if isinstance(model, str | Path):
        return None
    if (known := _loaded.get(model)) is not None and known.quantization is not None:
        twin = bare_copy(model)
        _loaded[twin] = known
        return Base(twin, **known.parts)
    try:
        check_kind(model)
    except ConfigError:
        return None
    twin = bare_copy(model)
    if source is None:
        source = find_model(name_of(model))
        if not _is_named_alike(twin, source.folder):
            return None
        check_weights(twin, source)
    return Base(twin, load_tokenizer(source), source, model.dtype)


def check_weights(model: PreTrainedModel, source: ModelSource) -> None:
    """Checks that a model in memory, without an adapter, has the weights of a folder.

    Raises:
        ConfigError: They differ.
    """
    if not same_weights(model, source.folder):
        message = f"its weights are not those of {source.ref}, where they are read again for merging"
        fix = "model.save_pretrained(FOLDER), tokenizer.save_pretrained(FOLDER), and load it from FOLDER"
        raise ConfigError(Problem("model", message, fix))


def _is_named_alike(model: PreTrainedModel, folder: Path) -> bool:
    """Whether a model has each tensor of a folder by the name that it has there; some are converted in loading."""
    held = model.state_dict().keys()
    for path in weight_files(folder):
        with safe_open(path, framework="pt") as file:
            if not held >= set(file.keys()):
                return False
    return True


def bare(model: Any) -> PreTrainedModel | None:
    """Returns a model in memory without its adapter, over the same weights, to be trained on or compared as it is.

    Returns:
        The bare model; None for one that is read by its name: quantized, with tokens that lamina has added, or with
        other tensors than its files.

    Raises:
        ModelError: It came from nowhere, or that is gone.
    """
    known = _loaded.get(model)
    if quantization_of(model) is not None or (known is not None and known.parts["added"] is not None):
        return None
    twin = bare_copy(model)
    return twin if _is_named_alike(twin, find_model(name_of(model)).folder) else None


def is_named(model: Any) -> bool:
    """Returns whether a model can be read from its name again."""
    return isinstance(model, str | Path) or model in _loaded or bool(getattr(model.config, "_name_or_path", ""))


def quantization_of(model: Any) -> QuantizationConfig | None:
    """Returns how a model that the script loaded is quantized."""
    if isinstance(model, str | Path):
        return None
    if model in _loaded:
        return _loaded[model].quantization
    return quantization(getattr(model.config, "quantization_config", None))


def dtype_of(model: Any) -> str:
    """Returns lamina's `dtype` for a model that the script loaded."""
    if isinstance(model, str | Path):
        return "auto"
    return "float32" if getattr(model, "dtype", None) == torch.float32 else "auto"


def type_of(model: Any) -> str:
    """Returns the model's `model_type`."""
    return str(_config_of(model).get("model_type", ""))


def positions_of(model: Any) -> int | None:
    """Returns the number of positions that the model has; None if its configuration does not say."""
    found = _config_of(model).get("max_position_embeddings")
    return found if isinstance(found, int) else None


def _config_of(model: Any) -> dict[str, Any]:
    if not isinstance(model, str | Path):
        return model.config.to_dict()
    folder = find_model(str(model), lambda message: None).folder
    return read_config(folder)


def quantization(config: Any) -> QuantizationConfig | None:
    """Returns lamina's section for a `BitsAndBytesConfig`, or for its settings.

    Raises:
        ConfigError: A setting has no counterpart.
    """
    if config is None:
        return None
    given: Mapping[str, Any] = config if isinstance(config, Mapping) else config.to_dict()
    found: dict[str, Any] = {}
    for name, value in given.items():
        entry = BITS_AND_BYTES.get(name)
        outcome = entry.outcome(value) if entry is not None else None
        if isinstance(outcome, Set) and all(key.startswith("quantization.") for key in outcome.values):
            found.update({key.removeprefix("quantization."): each for key, each in outcome.values.items()})
        elif isinstance(outcome, Missing):
            raise ConfigError(Problem(f"BitsAndBytesConfig.{name}", f"{value!r} has no counterpart", outcome.reason))
    if "bits" not in found:
        return None
    if found["bits"] == 8:
        found = {key: value for key, value in found.items() if key in ("bits", "modules_to_not_convert")}
    return QuantizationConfig.model_validate(found)
