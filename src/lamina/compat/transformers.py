"""transformers' loaders, with lamina's way of loading: a base in 4 or 8 bits needs no GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, BitsAndBytesConfig, PreTrainedModel, TrainingArguments

from lamina.compat import bases
from lamina.dialects.outcome import Missing
from lamina.dialects.trl import SFT
from lamina.errors import ConfigError, Problem

__all__ = ["AutoModelForCausalLM", "AutoTokenizer", "BitsAndBytesConfig", "TrainingArguments"]

# Arguments of `from_pretrained` that lamina needs not be told, beside those of the tables.
_PASSED_OVER = (
    "low_cpu_mem_usage",
    "use_cache",
    "token",
    "local_files_only",
    "use_safetensors",
    "offload_folder",
)


class AutoModelForCausalLM:
    """Loads causal language models."""

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str,
        *,
        quantization_config: Any = None,
        load_in_4bit: bool = False,
        load_in_8bit: bool = False,
        dtype: Any = None,
        torch_dtype: Any = None,
        device_map: Any = None,
        revision: str | None = None,
        **others: Any,
    ) -> PreTrainedModel:
        """Loads a base model, frozen: an adapter or `SFTTrainer` trains it.

        Args:
            pretrained_model_name_or_path: An alias, a folder, a `.gguf` file, or a hub id.
            quantization_config: A `BitsAndBytesConfig`; None leaves it unquantized.
            load_in_4bit, load_in_8bit: The same in short.
            dtype, torch_dtype: float32, or what lamina takes by itself.
            device_map: One device; "auto" for the first GPU, or the CPU. A map over several is an error.
            revision: A branch, a tag or a commit on the hub; of what is on this machine, there is one.
            others: transformers' other arguments; those that change nothing here are taken.

        Raises:
            ConfigError: An argument has no counterpart.
            ModelError: The model cannot be loaded.
        """
        problems: list[Problem] = []
        for name, value in others.items():
            entry = SFT.get(name)
            if name in _PASSED_OVER:
                continue
            if entry is None or isinstance(entry.outcome(value), Missing):
                problems.append(Problem(name, f"{value!r} has no counterpart", "leave it out"))
        if problems:
            raise ConfigError(problems)
        if load_in_4bit or load_in_8bit:
            quantization_config = {"load_in_4bit": load_in_4bit, "load_in_8bit": load_in_8bit}
        chosen, device = bases.dtype_name(torch_dtype if dtype is None else dtype), bases.device_for(device_map)
        name = str(pretrained_model_name_or_path)
        if revision not in (None, "main") and not Path(name).exists():
            name = f"{name}@{revision}"
        return bases.load(name, chosen, bases.quantization(quantization_config), device)
