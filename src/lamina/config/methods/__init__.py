"""The configuration half of every method, found by discovery.

A method is two files with one name: `config/methods/NAME.py` holds its fields (and must not import torch, so that a
config error answers at once), `methods/NAME.py` its mathematics.
"""

from __future__ import annotations

import importlib
import pkgutil
from functools import reduce
from operator import or_
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BeforeValidator, Field

from lamina.config.methods.base import MethodConfig


def _discover() -> dict[str, type[MethodConfig]]:
    names = sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name != "base")
    modules = {name: importlib.import_module(f"{__name__}.{name}") for name in names}
    return {name: module.CONFIG for name, module in modules.items()}


METHOD_CONFIGS: dict[str, type[MethodConfig]] = _discover()
"""Every method's configuration class by its name, which is the value of `method.type`."""

DEFAULT_METHOD = "lora"


def _with_type(value: Any) -> Any:
    """A `method:` section without a type is of the default method."""
    return {"type": DEFAULT_METHOD, **value} if isinstance(value, dict) and "type" not in value else value


if TYPE_CHECKING:
    AnyMethodConfig = MethodConfig
elif len(METHOD_CONFIGS) == 1:  # pydantic's discriminator wants at least two
    AnyMethodConfig = next(iter(METHOD_CONFIGS.values()))
else:
    AnyMethodConfig = Annotated[
        reduce(or_, METHOD_CONFIGS.values()), Field(discriminator="type"), BeforeValidator(_with_type)
    ]

__all__ = ["DEFAULT_METHOD", "METHOD_CONFIGS", "AnyMethodConfig", "MethodConfig"]
