"""The base class of every method's configuration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Self

from pydantic import Field, SerializerFunctionWrapHandler, create_model, model_serializer, model_validator

from lamina.config.section import Section

# Fields of peft's configurations that tutorials often set, with the values that describe what lamina's methods always
# do.
ALWAYS_SO: dict[str, tuple[Any, ...]] = {
    "alora_invocation_tokens": (None,),
    "alpha_pattern": (None, {}),
    "arrow_config": (None,),
    "auto_mapping": (None,),
    "base_model_name_or_path": (None,),
    "corda_config": (None,),
    "ensure_weight_tying": (False,),
    "eva_config": (None,),
    "exclude_modules": (None, []),
    "fan_in_fan_out": (True, False),  # as seen from the layer itself
    "inference_mode": (False,),
    "kasa_config": (None,),
    "layer_replication": (None,),
    "layers_pattern": (None,),
    "layers_to_transform": (None,),
    "loftq_config": (None, {}),
    "lora_bias": (False,),
    "lora_ga_config": (None,),
    "megatron_config": (None,),
    "megatron_core": (None, "megatron.core"),
    "modules_to_save": (None, []),
    "monteclora_config": (None,),
    "num_attention_heads": (None,),
    "num_layers": (None,),
    "num_transformer_submodules": (None,),
    "qalora_group_size": (16,),
    "rank_pattern": (None, {}),
    "revision": (None,),
    "runtime_config": (None, {"ephemeral_gpu_offload": False}),
    "target_parameters": (None, []),
    "task_type": (None, "CAUSAL_LM"),
    "token_dim": (None,),
    "tokenizer_kwargs": (None,),
    "trainable_token_indices": (None, []),
    "use_bdlora": (None, False),
    "use_dora": (False,),
    "use_qalora": (False,),
    "use_rslora": (False,),
    "velora_config": (None,),
}


# The field that names the adapter to start from, which is a keyword of Python.
FROM = "from"

# What may be set beside it: the rest comes from that adapter.
_BESIDE_FROM = ("type", "peft_type", FROM, "lora_dropout")

_DESCRIPTION = (
    "Start from this adapter, a run directory or an adapter folder, instead of a new one. Its settings are the "
    "adapter's own, so only `type` and `lora_dropout` may be given with it."
)

if TYPE_CHECKING:
    _Started = Section
else:
    _field = (Annotated[str, Field(min_length=1)] | None, Field(default=None, description=_DESCRIPTION))
    _Started = create_model("_Started", __base__=Section, **{FROM: _field})


class MethodConfig(_Started):
    """The `method:` section. Each method's own class adds its fields, with peft's names."""

    title: ClassVar[str]
    """The method's name in messages, such as `LoRA`."""

    paper: ClassVar[str]
    """The paper that introduced it."""

    summary: ClassVar[str]
    """One sentence for `lamina methods`."""

    learning_rate: ClassVar[float] = 1e-3
    """Default of `train.learning_rate`: the smallest value of a sweep whose loss is within 2% of the best
    (docs/benchmarks.md), if the method was part of the sweep."""

    learning_rate_follows_width: ClassVar[bool] = True
    """Whether the default is lowered for wide models (`training/rate.py`). Vectors that stand for tokens are learned at
    the same rate in models of every size (Lester et al., 2021, up to 11 billion weights), and so are IA3's scales."""

    base_is_read_only: ClassVar[bool] = True
    """Whether the method only reads the base layers' weights, so that lamina may replace the layers (quantized,
    offloaded)."""

    absent: ClassVar[Mapping[str, str]] = {}
    """Fields of other methods that users may look for here, and what to do instead."""

    so: ClassVar[Mapping[str, tuple[Any, ...]]] = {}
    """Fields of peft that the method does not have, with the values that describe what it does anyway; see
    `ALWAYS_SO`."""

    type: str
    """The method's name, which is also the name of its file."""

    @model_validator(mode="before")
    @classmethod
    def _take_what_is_so(cls, values: Any) -> Any:
        """Drops fields of peft that the method does not have, if their values ask for what happens anyway."""
        if not isinstance(values, Mapping):
            return values
        return {
            key: value
            for key, value in values.items()
            if (key in cls.model_fields and value not in ([], {})) or not cls._is_so(key, value)
        }

    @classmethod
    def _is_so(cls, key: str, value: Any) -> bool:
        if key == "peft_type":  # peft's name of the same method
            return isinstance(value, str) and value.lower() == cls.model_fields["type"].default
        if key == "peft_version":
            return value is None or isinstance(value, str)
        said = (*ALWAYS_SO.get(key, ()), *cls.so.get(key, ()))
        return any(value == each and type(value) is type(each) for each in said)

    @property
    def start(self) -> str | None:
        """The adapter to start from (`from`): a run directory or an adapter folder; None for a new adapter."""
        return getattr(self, FROM)

    @model_validator(mode="after")
    def _check_beside_from(self) -> Self:
        beside = sorted({*self.model_fields_set, *(self.model_extra or {})} - {*_BESIDE_FROM})
        if self.start is not None and beside:
            raise ValueError(
                f"from: {self.start} starts from an adapter that has its own settings; remove {', '.join(beside)}, or "
                "remove from to train a new adapter"
            )
        return self

    @model_serializer(mode="wrap")
    def _only_what_counts(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values = serialize(self)
        if self.start is None:
            values.pop(FROM, None)  # absent with exclude_unset
            return values
        # The other settings are the adapter's, whatever their defaults here are.
        return {key: value for key, value in values.items() if key in ("type", FROM) or key in self.model_fields_set}

    def shortened(self, share: float) -> Self:
        """Returns the configuration for a run with that share of the steps (0 to 1), for methods with a schedule."""
        return self

    def rank_of(self, module: str) -> int:
        """Returns the adapter's rank on the linear layer `module`, whose smaller side must be at least this (or 1)."""
        return 1

    def narrowest(self, module: str) -> int:
        """Returns the smallest in_features and out_features with which `all-linear` selects the layer `module`."""
        return self.rank_of(module)

    @property
    def starts_elsewhere(self) -> bool:
        """Whether the settings make a new adapter change the model's output from the start."""
        return False

    @property
    def everywhere(self) -> bool:
        """Whether it adapts every linear layer that it can (`target_modules: all-linear`)."""
        return getattr(self, "target_modules", None) == "all-linear"  # also if it is one of peft's fields

    @classmethod
    def takes(cls, field: str) -> bool:
        """Returns whether the section may have a field with that name."""
        return field in cls.model_fields
