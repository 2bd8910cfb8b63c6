"""`method: {type: prompt_tuning}`: the fields of prompt tuning. The math is in `methods/prompt_tuning.py`."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from lamina.config.methods.base import MethodConfig


class PromptTuningConfig(MethodConfig):
    """Prompt tuning: trained embeddings in front of every sequence."""

    title: ClassVar[str] = "Prompt tuning"
    paper: ClassVar[str] = (
        "Lester et al. 2021, The Power of Scale for Parameter-Efficient Prompt Tuning, arXiv:2104.08691"
    )
    summary: ClassVar[str] = "trained embeddings in front of every sequence"
    learning_rate: ClassVar[float] = 3e-1
    learning_rate_follows_width: ClassVar[bool] = False

    type: Literal["prompt_tuning"] = "prompt_tuning"  # pyright: ignore[reportIncompatibleVariableOverride]
    """Method name."""

    num_virtual_tokens: Annotated[int, Field(ge=1)] = 20
    """Number of embeddings."""

    prompt_tuning_init: Literal["RANDOM", "SAMPLE_VOCAB", "TEXT"] = "RANDOM"
    """Start from normally distributed random numbers, from the embeddings of random tokens, or from those of a text."""

    prompt_tuning_init_text: Annotated[str, Field(min_length=1)] | None = None
    """The initial text; it is truncated or repeated to `num_virtual_tokens` tokens."""

    tokenizer_name_or_path: Annotated[str, Field(min_length=1)] | None = None
    """Folder of the tokenizer for that text; null means the base model's own."""

    @model_validator(mode="after")
    def _check_text(self) -> PromptTuningConfig:
        if self.prompt_tuning_init == "TEXT" and self.prompt_tuning_init_text is None:
            raise ValueError("prompt_tuning_init 'TEXT' needs prompt_tuning_init_text; set it")
        if self.prompt_tuning_init != "TEXT":
            for name in ("prompt_tuning_init_text", "tokenizer_name_or_path"):
                if getattr(self, name) is not None:
                    raise ValueError(f"{name} has no effect without prompt_tuning_init: TEXT; set that or remove it")
        return self


CONFIG = PromptTuningConfig
