"""The configuration half of every method, found by discovery.

A method is two files with the same name: `config/methods/NAME.py` has its fields (and must not import torch, so that a
configuration error is reported at once), and `methods/NAME.py` its math. Other packages add methods with entry points
(`lamina/plugins.py`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lamina import plugins
from lamina.config.families import any_of
from lamina.config.methods.base import MethodConfig

METHOD_CONFIGS: dict[str, type[MethodConfig]] = plugins.config_halves("methods", "CONFIG", MethodConfig)
"""Each method's configuration class, by name (the value of `method.type`)."""

DEFAULT_METHOD = "lora"

if TYPE_CHECKING:
    AnyMethodConfig = MethodConfig
else:
    AnyMethodConfig = any_of(METHOD_CONFIGS, DEFAULT_METHOD)

__all__ = ["DEFAULT_METHOD", "METHOD_CONFIGS", "AnyMethodConfig", "MethodConfig"]
