"""What every method's configuration has."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Self

from pydantic import model_validator

from lamina.config.section import Section

# Fields of peft's configurations, as tutorials have them, with values that say what is so for all methods of lamina's.
ALWAYS_SO: dict[str, tuple[Any, ...]] = {
    "alpha_pattern": (None, {}),
    "auto_mapping": (None,),
    "exclude_modules": (None, []),
    "fan_in_fan_out": (True, False),  # seen from the layer itself
    "inference_mode": (False,),
    "layer_replication": (None,),
    "layers_pattern": (None,),
    "layers_to_transform": (None,),
    "lora_bias": (False,),
    "modules_to_save": (None, []),
    "rank_pattern": (None, {}),
    "revision": (None,),
    "target_parameters": (None, []),
    "task_type": ("CAUSAL_LM",),
    "trainable_token_indices": (None,),
    "use_dora": (False,),
    "use_rslora": (False,),
}


class MethodConfig(Section):
    """The `method:` section. A method's own class adds its fields, with peft's names."""

    title: ClassVar[str]
    """The method's name in prose, such as `LoRA`."""

    paper: ClassVar[str]
    """Where it comes from."""

    summary: ClassVar[str]
    """One sentence for `lamina methods`."""

    learning_rate: ClassVar[float] = 1e-3
    """What `train.learning_rate` is unless it is given: the smallest of a sweep with a loss within 2% of the best one's
    (docs/benchmarks.md), where the method was in it."""

    base_is_read_only: ClassVar[bool] = True
    """Whether the base's layers may be others than the model's own, which only read their weights."""

    absent: ClassVar[Mapping[str, str]] = {}
    """Fields of other methods that one may look for here, and what to do instead."""

    so: ClassVar[Mapping[str, tuple[Any, ...]]] = {}
    """Fields of peft's that the method does not have, with the values that say what it does; see `ALWAYS_SO`."""

    type: str
    """The method's name, which is the name of its file."""

    @model_validator(mode="before")
    @classmethod
    def _take_what_is_so(cls, values: Any) -> Any:
        """Takes fields of peft's that the method does not have, where they ask for what happens anyway."""
        if not isinstance(values, Mapping):
            return values
        return {key: value for key, value in values.items() if key in cls.model_fields or not cls._is_so(key, value)}

    @classmethod
    def _is_so(cls, key: str, value: Any) -> bool:
        said = (*ALWAYS_SO.get(key, ()), *cls.so.get(key, ()))
        return any(value == each and type(value) is type(each) for each in said)

    def shortened(self, share: float) -> Self:
        """The same for a run over that share of the steps (0 to 1), where the method has a schedule of its own."""
        return self

    def rank_of(self, module: str) -> int:
        """The rank that the linear layer of that name gets, which its smaller side must have; 1 where any will do."""
        return 1

    def narrowest(self, module: str) -> int:
        """How wide the layer of that name must be at both sides for `all-linear` to select it."""
        return self.rank_of(module)

    @property
    def everywhere(self) -> bool:
        """Whether it goes on every linear layer that it can go on (`target_modules: all-linear`)."""
        return getattr(self, "target_modules", None) == "all-linear"  # also among peft's fields

    @classmethod
    def takes(cls, field: str) -> bool:
        """Whether the section may have a field of that name."""
        return field in cls.model_fields
