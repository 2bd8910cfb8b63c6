"""Prompt tuning: n trained embeddings P before every sequence; the frozen model's input is [P; E(x)].

Lester et al. 2021, "The Power of Scale for Parameter-Efficient Prompt Tuning", arXiv:2104.08691.
`methods/shared/virtual_tokens.py` inserts the rows into a call.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from transformers import AutoTokenizer, PreTrainedModel

from lamina.config.methods.prompt_tuning import PromptTuningConfig
from lamina.errors import ConfigError, Problem
from lamina.methods.shared.base import Injection, Method, Saved
from lamina.methods.shared.soft_prompt import (
    TrainedRows,
    embedding_width,
    prompt_config,
    read_count,
    refuse_unknown,
)
from lamina.methods.shared.virtual_tokens import find_decoder
from lamina.models.vocabulary import embedding_rows


class PromptTuning(Method):
    """Trained embeddings before every sequence."""

    starts_as_base: ClassVar[bool] = False

    def attach(self, model: PreTrainedModel, config: PromptTuningConfig, seed: int) -> Injection:
        prompt = TrainedRows(model, _initial_rows(model, config, torch.Generator().manual_seed(seed)))
        prompt.hook_into(model)
        return Injection(model, config, {"": prompt})

    def saved(self, injection: Injection) -> Saved:
        config = injection.config
        assert isinstance(config, PromptTuningConfig)
        if config.prompt_tuning_init == "TEXT":  # loading must not need the tokenizer
            config = PromptTuningConfig(num_virtual_tokens=config.num_virtual_tokens)
        return Saved(config, injection.saved_tensors())

    def peft_config(self, config: PromptTuningConfig, target_modules: list[str], base_ref: str) -> dict[str, Any]:
        return {
            **prompt_config("PROMPT_TUNING", config.num_virtual_tokens, base_ref),
            "prompt_tuning_init": config.prompt_tuning_init,
            "prompt_tuning_init_text": None,
            "tokenizer_name_or_path": None,
            "tokenizer_kwargs": None,
        }

    def reads_peft(self, peft_config: Mapping[str, Any]) -> bool:
        return peft_config.get("peft_type") == "PROMPT_TUNING"

    def from_peft(self, peft_config: Mapping[str, Any]) -> PromptTuningConfig:
        refuse_unknown(peft_config, _INITIAL_FIELDS, "prompt tuning")
        return PromptTuningConfig(num_virtual_tokens=read_count(peft_config))


METHOD = PromptTuning()

# Fields of the initialization.
_INITIAL_FIELDS = {
    "prompt_tuning_init",
    "prompt_tuning_init_text",
    "tokenizer_kwargs",
    "tokenizer_name_or_path",
}


def _initial_rows(model: PreTrainedModel, config: PromptTuningConfig, generator: torch.Generator) -> torch.Tensor:
    """Computes the initial rows, (n, D), float32, on the CPU, so that a seed gives the same rows for every device."""
    count = config.num_virtual_tokens
    if config.prompt_tuning_init == "RANDOM":
        return torch.randn(count, embedding_width(model), generator=generator)
    if config.prompt_tuning_init == "SAMPLE_VOCAB":
        vocabulary = model.config.get_text_config().vocab_size
        ids = torch.randint(0, vocabulary, (count,), generator=generator)
    else:
        ids = torch.tensor(_text_ids(model, config))
    with torch.no_grad():
        return find_decoder(model).get_input_embeddings()(ids.to(model.device)).float().cpu()


def _text_ids(model: PreTrainedModel, config: PromptTuningConfig) -> list[int]:
    path = config.tokenizer_name_or_path or model.name_or_path
    try:
        ids: list[int] = AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=False)(
            config.prompt_tuning_init_text
        ).input_ids
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(
            Problem(
                "method.tokenizer_name_or_path",
                f"no tokenizer can be loaded from {path!r} ({error}).",
                "name a tokenizer's folder, or use prompt_tuning_init: SAMPLE_VOCAB",
            )
        ) from None
    rows = embedding_rows(model)
    if rows is not None and max(ids, default=0) >= rows:
        message = (
            f"{config.prompt_tuning_init_text!r} has the token {max(ids)}, but the base's embedding has {rows} rows."
        )
        raise ConfigError(Problem("method.prompt_tuning_init_text", message, "write it without that token"))
    if not ids:
        raise ConfigError(
            Problem(
                "method.prompt_tuning_init_text", f"{config.prompt_tuning_init_text!r} has no tokens.", "write more"
            )
        )
    count = config.num_virtual_tokens
    return (ids * -(-count // len(ids)))[:count]
