"""`data:` what to train on, and how a row becomes tokens."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from lamina.config.section import Section

Share = Annotated[float, Field(gt=0.0, lt=1.0)]

# The fields that `columns` may map, and so the names that the built-in formats read.
MAPPABLE_FIELDS = ("messages", "prompt", "completion", "system", "instruction", "input", "output")


class DataConfig(Section):
    """Where the examples come from and how they are rendered, cut and packed."""

    train: str
    """Training file: `.jsonl` or `.json`."""

    eval: Share | str | None = 0.1
    """Evaluation data: a file, a share of `train` to split off (rows with equal prompts stay on one side), or null."""

    format: Literal["auto", "messages", "prompt_completion", "alpaca"] = "auto"
    """Shape of a row; `auto` looks at the rows."""

    columns: dict[str, str] | None = None
    """Renames columns before the format is applied: field -> column, e.g. `{prompt: question, completion: answer}`."""

    max_rows: Annotated[int, Field(ge=1)] | None = None
    """Use only the first rows of `train`; the rest is counted in the data report."""

    max_length: Annotated[int, Field(ge=8)] = 1024
    """Longest example in tokens, and the unit of the packing budget."""

    overlong: Literal["drop", "cut"] = "drop"
    """What happens to a longer example. A cut one loses its end, and with it the stop token."""

    packing: bool = True
    """Fill each micro-batch up to `per_device_train_batch_size` x `max_length` tokens instead of counting examples."""

    train_on: Literal["assistant", "completions", "all"] = "assistant"
    """Tokens in the loss: every assistant turn, only the last one (`completions`), or everything."""

    chat_template: str | None = None
    """A built-in template (`chatml`, `plain`) to use instead of the model's own."""

    @model_validator(mode="after")
    def _check_columns(self) -> DataConfig:
        unknown = [field for field in self.columns or {} if field not in MAPPABLE_FIELDS]
        if unknown:
            raise ValueError(
                f"columns maps the unknown fields {', '.join(map(repr, unknown))}; "
                f"fields are: {', '.join(MAPPABLE_FIELDS)}. "
                "Write field: column, such as {prompt: question, completion: answer}."
            )
        return self
