"""peft's configurations: `LoraConfig`, and `PeftConfig` for what an adapter's file holds."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Any, ClassVar

from lamina.adapters.hf_peft import read_peft_config
from lamina.adapters.load import adapter_folder
from lamina.compat.unknown import refuse_unknown
from lamina.dialects.peft import LORA_CONFIG
from lamina.errors import nearest
from lamina.runs import CHECKPOINT_FOLDER


class TaskType(StrEnum):
    """What an adapter is for; lamina trains causal language models, and heads on them."""

    CAUSAL_LM = "CAUSAL_LM"
    SEQ_CLS = "SEQ_CLS"


class PeftConfig:
    """An adapter's settings, as `adapter_config.json` has them: each is an attribute."""

    peft_type = ""
    # peft's defaults where they are more than None.
    defaults: ClassVar[Mapping[str, Any]] = {"inference_mode": False}

    base_model_name_or_path: str | None
    inference_mode: bool

    def __init__(self, **given: Any) -> None:
        self.__dict__.update(given)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **others: Any) -> PeftConfig:
        """Reads the settings of a run's adapter, or of an adapter folder, lamina's or peft's.

        Args:
            pretrained_model_name_or_path: The run or the folder, or a reference to the registry.
            others: peft's other arguments, which are about downloading; they have no effect.

        Raises:
            AdapterError: There is no adapter, or its file is damaged.
        """
        return config_of(read_peft_config(adapter_folder(place_of(pretrained_model_name_or_path))))

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name not in {*LORA_CONFIG, *self.defaults}:
            raise AttributeError(f"{type(self).__name__} has no setting {name!r}. {nearest(name, LORA_CONFIG)}".strip())
        return copy.deepcopy(self.defaults.get(name))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in self.__dict__.items())})"

    def to_dict(self) -> dict[str, Any]:
        """Returns the settings as `adapter_config.json` has them."""
        return {"peft_type": self.peft_type, **self.__dict__}


class LoraConfig(PeftConfig):
    """LoRA's settings, by peft's names and with its defaults. Configurations of peft itself are taken as well."""

    peft_type = "LORA"
    defaults: ClassVar[Mapping[str, Any]] = {
        **PeftConfig.defaults,
        "fan_in_fan_out": False,
        "use_rslora": False,
        "use_dora": False,
        "use_qalora": False,
        "qalora_group_size": 16,
        "lora_bias": False,
        "ensure_weight_tying": False,
        "init_lora_weights": True,
        "megatron_core": "megatron.core",
        "rank_pattern": {},
        "alpha_pattern": {},
        "loftq_config": {},
    }

    def __init__(
        self,
        r: int = 8,
        target_modules: str | list[str] | None = None,
        lora_alpha: float = 8,
        lora_dropout: float = 0.0,
        bias: str = "none",
        task_type: str | None = None,
        **others: Any,
    ) -> None:
        refuse_unknown("LoraConfig", others, LORA_CONFIG)
        settings = {"r": r, "lora_alpha": lora_alpha, "lora_dropout": lora_dropout, "target_modules": target_modules}
        super().__init__(**settings, bias=bias, task_type=task_type, **others)


def place_of(path: str | Path) -> str | Path:
    """Returns where an adapter is; a trainer's `output_dir/checkpoint-100` is the checkpoint of a run."""
    named = re.fullmatch(r"checkpoint-(\d+)", Path(path).name)
    found = None if named is None else Path(path).parent / CHECKPOINT_FOLDER / f"step-{int(named[1]):08d}"
    return path if found is None or Path(path).exists() or not found.exists() else found


def config_of(content: Mapping[str, Any]) -> PeftConfig:
    """Returns the configuration for the content of an `adapter_config.json`."""
    given = {name: value for name, value in content.items() if name != "peft_type"}
    kind = str(content.get("peft_type", ""))
    if kind == "LORA" and set(given) <= set(LORA_CONFIG):
        return LoraConfig(**given)
    found = PeftConfig(**given)
    found.__dict__["peft_type"] = kind
    return found
