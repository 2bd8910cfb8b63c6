"""TRL's configurations: `SFTConfig` and `DPOConfig`."""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, ClassVar

from lamina.compat.unknown import refuse_unknown
from lamina.dialects.outcome import Entry
from lamina.dialects.trl import DPO, SFT
from lamina.dialects.trl_defaults import DPO_DEFAULTS, SFT_DEFAULTS
from lamina.errors import nearest

# Names for the same setting, of older versions or of a command line: each with the others.
_SAME = {
    **dict.fromkeys(("per_gpu_train_batch_size", "train_batch_size", "batch_size"), ("per_device_train_batch_size",)),
    "per_device_train_batch_size": ("per_gpu_train_batch_size", "train_batch_size", "batch_size"),
    "max_seq_length": ("max_length",),
    "max_length": ("max_seq_length",),
    "evaluation_strategy": ("eval_strategy",),
    "eval_strategy": ("evaluation_strategy",),
    "activation_checkpointing": ("gradient_checkpointing",),
    "gradient_checkpointing": ("activation_checkpointing",),
    "chat_template": ("chat_template_path",),
    "torch_dtype": ("dtype",),
}


class SFTConfig:
    """TRL's settings of a run, by its names. Those that are not given have its defaults, and can be read and changed.

    Attributes:
        given: What was set.
    """

    table: ClassVar[Mapping[str, Entry]] = SFT
    defaults: ClassVar[Mapping[str, Any]] = SFT_DEFAULTS
    loss: ClassVar[str] = "cross_entropy"

    given: dict[str, Any]

    def __init__(self, output_dir: str | None = None, **given: Any) -> None:
        self.__dict__["given"] = {"output_dir": output_dir or self.defaults["output_dir"]}
        refuse_unknown(type(self).__name__, given, self.table)
        self.given.update(given)

    def __getattr__(self, name: str) -> Any:
        given = self.__dict__.get("given", {})  # not there yet while a copy is made
        names = (name, *_SAME.get(name, ()))
        if (set_by := next((each for each in names if each in given), None)) is not None:
            return given[set_by]
        if name not in self.table:
            raise AttributeError(self._unknown(name))
        defaults = (self._default(each) for each in names)
        return copy.deepcopy(next((value for value in defaults if value is not None), None))

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in self.table:
            raise AttributeError(self._unknown(name))
        for other in self.table:  # what was set by an older name is set anew
            if other in _SAME.get(name, ()) or name in _SAME.get(other, ()):
                self.given.pop(other, None)
        self.given[name] = value

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *self.table})

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in self.given.items())})"

    def to_dict(self) -> dict[str, Any]:
        """Returns all settings, defaults included."""
        return {name: getattr(self, name) for name in self.table}

    def _default(self, name: str) -> Any:
        """TRL's default; None for a name of another version or of TRL's command line."""
        return self.defaults[name] if name in self.defaults else _of_transformers().get(name)

    def _unknown(self, name: str) -> str:
        return f"{type(self).__name__} has no setting {name!r}. {nearest(name, self.table)}".strip()


class DPOConfig(SFTConfig):
    """TRL's settings of direct preference optimization."""

    table: ClassVar[Mapping[str, Entry]] = DPO
    defaults: ClassVar[Mapping[str, Any]] = DPO_DEFAULTS
    loss: ClassVar[str] = "dpo"


@functools.cache
def _of_transformers() -> dict[str, Any]:
    """The defaults of transformers' `TrainingArguments`, by name."""
    from transformers import TrainingArguments

    found = {}
    for each in dataclasses.fields(TrainingArguments):
        if each.default is not dataclasses.MISSING:
            found[each.name] = each.default
        elif each.default_factory is not dataclasses.MISSING:
            found[each.name] = each.default_factory()
    return found
