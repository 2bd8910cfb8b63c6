"""Reads from config.json how the weights of a model folder are quantized."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lamina.config.quantization import QuantizationConfig
from lamina.errors import ConfigError, ModelError, Problem


def stored_quantization(folder: Path) -> QuantizationConfig | None:
    """Returns how the folder's weights are quantized; None if they are not.

    Raises:
        ModelError: They are quantized by a method that lamina cannot train on.
    """
    stored = read_config(folder).get("quantization_config")
    if not stored:
        return None
    method = stored.get("quant_method", "bitsandbytes")
    if method != "bitsandbytes":
        raise ModelError(
            f"{folder}: its weights are quantized with {method}, which lamina cannot train on. "
            "Fix: use the model in 16 bits, and quantize it with `quantization: {bits: 4}`."
        )
    if stored.get("load_in_8bit"):
        return QuantizationConfig(bits=8)
    # config.json does not have the block size, so it stays at its default here; the weights' files have it, and loading
    # uses that one.
    return QuantizationConfig(
        bits=4,
        quant_type=stored.get("bnb_4bit_quant_type", "fp4"),
        double_quant=bool(stored.get("bnb_4bit_use_double_quant", False)),
    )


def agreed(wanted: QuantizationConfig | None, stored: QuantizationConfig | None, folder: Path) -> QuantizationConfig:
    """Returns the quantization to load with.

    Raises:
        ConfigError: The folder is quantized differently from the configuration.
    """
    if wanted is None or stored is None:
        chosen = wanted or stored
        assert chosen is not None
        return chosen
    for field in ("bits", "quant_type", "double_quant"):
        asked, found = getattr(wanted, field), getattr(stored, field)
        if asked != found and (field == "bits" or stored.bits == 4):
            message = f"{folder} is already quantized with {field} {found}, but {asked} was requested."
            raise ConfigError(
                Problem(f"quantization.{field}", message, "remove `quantization`, or name the model in 16 bits")
            )
    return wanted


def read_config(folder: Path) -> dict[str, Any]:
    """Reads a model folder's config.json; empty if it is none, which loading the model reports."""
    try:
        content = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
