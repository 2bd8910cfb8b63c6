"""`loss: {type: distillation}`: learns a teacher's distributions. The math is in `losses/distillation.py`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from lamina.config.losses.base import LossConfig


class DistillationConfig(LossConfig):
    """Distillation: the student learns a teacher's distribution over each token of the answers in the data."""

    title: ClassVar[str] = "distillation"
    paper: ClassVar[str] = "Agarwal et al. 2023, On-Policy Distillation of Language Models (GKD), arXiv:2306.13649"
    summary: ClassVar[str] = "learns a teacher's distributions, of another model or of the same base with a prompt"
    whole_rows: ClassVar[bool] = True
    absent: ClassVar[Mapping[str, str]] = {
        "lmbda": "leave it out: the answers are those of the data; to learn from generated ones, write them with "
        "`lamina generate` first",
        "max_completion_length": "leave it out: the answers are those of the data",
        "teacher_model_name_or_path": "set teacher",
        "max_length": "set data.max_length",
    }

    type: Literal["distillation"] = "distillation"  # pyright: ignore[reportIncompatibleVariableOverride]
    """Loss name."""

    teacher: Annotated[str, Field(min_length=1)] | None = None
    """The teacher: an alias, a folder, a hub id, or a `.gguf` file of a model with the same tokenizer; null means the
    base itself with the adapter off, which needs a `teacher_prompt`."""

    teacher_prompt: Annotated[str, Field(min_length=1)] | None = None
    """A file with what the teacher alone reads before each conversation: a text, which is its system message, or a
    `.json` list of turns, such as examples."""

    beta: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0
    """Which divergence: 0 is the forward KL, 1 the reverse KL, and between them is the generalized Jensen-Shannon
    divergence."""

    temperature: Annotated[float, Field(gt=0.0)] = 1.0
    """What both models' logits are divided by."""

    @model_validator(mode="after")
    def _check_teacher(self) -> DistillationConfig:
        if self.teacher is None and self.teacher_prompt is None:
            raise ValueError(
                "teacher and teacher_prompt are both null, so the teacher would be the student's own base; set teacher "
                "to a model, or teacher_prompt to a file that the teacher alone reads"
            )
        return self


CONFIG = DistillationConfig
