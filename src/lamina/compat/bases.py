"""The base model behind a script's model: its name, how it is quantized, and lamina's own `Base` if it loaded it."""

from __future__ import annotations

import json
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from lamina.config.quantization import QuantizationConfig
from lamina.dialects.outcome import Missing, Set
from lamina.dialects.peft import BITS_AND_BYTES
from lamina.errors import ConfigError, ModelError, Problem
from lamina.models.load import Base, load_base
from lamina.models.source import find_model

# What `lamina.compat.transformers` loaded, by the model that the script holds.
_loaded: weakref.WeakKeyDictionary[PreTrainedModel, tuple[Base, str]] = weakref.WeakKeyDictionary()


def load(name: str, dtype: str, quantization: QuantizationConfig | None) -> PreTrainedModel:
    """Loads a base model with lamina's loader, and keeps what it knows about it."""
    base = load_base(name, dtype, quantization=quantization)
    _loaded[base.model] = (base, name)
    return base.model


def name_of(model: Any) -> str:
    """Returns the name or the folder that a model was loaded from.

    Raises:
        ModelError: It came from nowhere that could be read again.
    """
    if isinstance(model, str | Path):
        return str(model)
    if model in _loaded:
        return _loaded[model][1]
    name = str(getattr(model.config, "_name_or_path", "") or getattr(model, "name_or_path", ""))
    if not name:
        raise ModelError(
            "the model was made in memory, so there is nothing to read it from. Fix: model.save_pretrained(FOLDER), "
            "tokenizer.save_pretrained(FOLDER), and give FOLDER."
        )
    return name


def is_named(model: Any) -> bool:
    """Returns whether a model can be read from its name again."""
    return isinstance(model, str | Path) or model in _loaded or bool(getattr(model.config, "_name_or_path", ""))


def quantization_of(model: Any) -> QuantizationConfig | None:
    """Returns how a model that the script loaded is quantized."""
    if isinstance(model, str | Path):
        return None
    if model in _loaded:
        return _loaded[model][0].quantization
    return quantization(getattr(model.config, "quantization_config", None))


def dtype_of(model: Any) -> str:
    """Returns lamina's `dtype` for a model that the script loaded."""
    if isinstance(model, str | Path):
        return "auto"
    return "float32" if getattr(model, "dtype", None) == torch.float32 else "auto"


def type_of(model: Any) -> str:
    """Returns the model's `model_type`; empty if only its name is known and its files are not here."""
    if not isinstance(model, str | Path):
        return str(model.config.model_type)
    folder = find_model(str(model), lambda message: None).folder
    return str(json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type", ""))


def quantization(config: Any) -> QuantizationConfig | None:
    """Returns lamina's section for a `BitsAndBytesConfig`, or for its settings.

    Raises:
        ConfigError: A setting has no counterpart.
    """
    if config is None:
        return None
    given: Mapping[str, Any] = config if isinstance(config, Mapping) else config.to_dict()
    values: dict[str, Any] = {}
    for name, value in given.items():
        entry = BITS_AND_BYTES.get(name)
        outcome = entry.outcome(value) if entry is not None else None
        if isinstance(outcome, Set):
            values.update({key.removeprefix("quantization."): each for key, each in outcome.values.items()})
        elif isinstance(outcome, Missing):
            raise ConfigError(Problem(f"BitsAndBytesConfig.{name}", f"{value!r} has no counterpart", outcome.reason))
    if "bits" not in values:
        return None
    if values["bits"] == 8:
        values = {key: value for key, value in values.items() if key in ("bits", "modules_to_not_convert")}
    return QuantizationConfig.model_validate(values)
