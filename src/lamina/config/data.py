"""`data:` what to train on, and how a row becomes tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, field_validator, model_validator

from lamina import plugins
from lamina.config.section import Section

Share = Annotated[float, Field(gt=0.0, lt=1.0)]
if TYPE_CHECKING:
    FormatName = str
else:
    FormatName = Literal[("auto", *plugins.members("formats"))]
TextUnit = Literal["auto", "line", "paragraph", "file"]

# The fields that `columns` may map, and so the names that the built-in formats read.
MAPPABLE_FIELDS = (
    "messages",
    "conversations",
    "prompt",
    "completion",
    "system",
    "instruction",
    "input",
    "output",
    "history",
    "text",
    "chosen",
    "rejected",
    "label",
    "margin",
    "tools",
    "chat_template_kwargs",
)


def _known_fields(columns: dict[str, str] | None) -> dict[str, str] | None:
    if any(member.package for member in plugins.members("formats").values()):
        return columns  # which fields those read is known when they are imported
    unknown = [field for field in columns or {} if field not in MAPPABLE_FIELDS]
    if unknown:
        raise ValueError(
            f"columns maps the unknown fields {', '.join(map(repr, unknown))}; "
            f"fields are: {', '.join(MAPPABLE_FIELDS)}. "
            "Write field: column, such as {prompt: question, completion: answer}."
        )
    return columns


class SourceConfig(Section):
    """One of several sources; what is not given here is as in `data`."""

    path: str
    """File, folder, `folder:split`, glob, or data set of the hub (`user/name[/configuration][:split]`)."""

    weight: Annotated[float, Field(gt=0.0, le=100.0)] = 1.0
    """How often its rows are seen in an epoch: 2 is every row twice, 0.5 half of them, drawn by `seed`."""

    format: FormatName | None = None
    """Shape of its rows."""

    columns: dict[str, str] | None = None
    """Its columns: field -> column, or a Jinja template over the columns."""

    max_rows: Annotated[int, Field(ge=1)] | None = None
    """Use only its first rows."""

    _check_columns = field_validator("columns")(_known_fields)


class ReplayConfig(Section):
    """General text that is mixed into the training data, against forgetting."""

    path: str
    """File, folder, glob, or data set of the hub; any format."""

    share: Share = 0.05
    """Share of the tokens that an epoch trains on. Rows are drawn by `seed`."""

    format: FormatName = "auto"
    """Shape of its rows."""

    columns: dict[str, str] | None = None
    """Its columns: field -> column, or a Jinja template over the columns."""

    _check_columns = field_validator("columns")(_known_fields)


class DataConfig(Section):
    """Where the examples come from and how they are rendered, cut and packed."""

    train: str | list[str | SourceConfig]
    """File, folder, glob or data set of the hub, or a list of them, each a path or a section with a `weight`."""

    eval: Share | str | None = 0.1
    """Evaluation data: a file or folder, a share of `train` to split off (equal prompts stay on one side), or null."""

    format: FormatName = "auto"
    """Shape of a row; `auto` looks at the rows."""

    columns: dict[str, str] | None = None
    """Columns that the format's fields are read from: field -> column, or a Jinja template over the columns.

    Such as `{prompt: question, completion: answer}` or `{prompt: "{{ title }}: {{ body }}", completion: summary}`.
    """

    max_rows: Annotated[int, Field(ge=1)] | None = None
    """Use only the first rows of each training file; the rest is counted in the data report."""

    max_dropped: Annotated[float, Field(ge=0.0, le=1.0)] = 0.5
    """Largest share of a source's rows that may be left out, such as for their length; more is an error."""

    text_unit: TextUnit = "auto"
    """What one document is in a plain text file; `auto` looks at the lines."""

    stratify_by: str | None = None
    """A column whose values the split for evaluation keeps in proportion."""

    group_by: str | None = None
    """A column whose equal values stay on one side of the split, such as the id of a conversation."""

    replay: ReplayConfig | None = None
    """General text that is mixed into the training data, against forgetting."""

    max_length: Annotated[int, Field(ge=8)] = 1024
    """Longest example in tokens, and the unit of the packing budget."""

    overlong: Literal["auto", "drop", "cut", "split"] = "auto"
    """What happens to a longer example.

    `drop` leaves it out, `cut` loses its end and with it the stop token, `split` makes several of it. `auto` splits
    plain text and drops conversations.
    """

    packing: bool = True
    """Fill each micro-batch up to `per_device_train_batch_size` x `max_length` tokens instead of counting examples."""

    packing_strategy: Literal["bfd", "wrapped"] = "bfd"
    """How packing fills a micro-batch.

    `bfd` packs whole examples (best fit, longest first). `wrapped` joins them end to end and cuts them wherever
    a micro-batch is full, once for all epochs; the rest of an example then no longer sees its beginning.
    """

    group_by_length: bool = False
    """Without packing: put examples of like length into one micro-batch."""

    train_on: Literal["assistant", "completions", "marked", "all"] = "assistant"
    """Tokens in the loss.

    Every assistant turn, only the last one (`completions`), only what the data marks (`train: true` or `weight: 1` on
    a turn, `train: true` on a part of it), or everything. A turn with `weight: 0` or `train: false` is left out.
    """

    thinking: Literal["keep", "strip", "unsupervised"] = "keep"
    """Reasoning in an answer: in the loss, removed, or left in the text but out of the loss."""

    enable_thinking: bool | None = None
    """Whether the template is told to let the model reason, in training and in use; null leaves it to the template.

    A row's own `chat_template_kwargs` take precedence.
    """

    chat_template: str | None = None
    """A built-in template, or a Jinja file, to use instead of the model's own."""

    _check_columns = field_validator("columns")(_known_fields)

    @field_validator("train")
    @classmethod
    def _check_train(cls, train: str | list[str | SourceConfig]) -> str | list[str | SourceConfig]:
        if not train:
            raise ValueError("train names no data. Give a path, or a list with at least one.")
        return train

    @model_validator(mode="after")
    def _check_pairs(self) -> DataConfig:
        if self.group_by_length and self.packing:
            raise ValueError("group_by_length does nothing with packing. Set packing: false, or leave it out.")
        if self.packing_strategy != "bfd" and not self.packing:
            raise ValueError(
                f"packing_strategy {self.packing_strategy!r} does nothing without packing. Set packing: true, or leave "
                "it out."
            )
        for name in ("stratify_by", "group_by"):
            if getattr(self, name) is not None and not isinstance(self.eval, float):
                raise ValueError(
                    f"{name} does nothing unless eval is a share of train. Set eval: 0.1, or leave it out."
                )
        return self

    @property
    def sources(self) -> list[SourceConfig]:
        """The training data as a list of sources, each with all of its settings."""
        listed = [self.train] if isinstance(self.train, str) else self.train
        return [self._source(SourceConfig(path=item) if isinstance(item, str) else item) for item in listed]

    def source_of(self, path: str) -> SourceConfig:
        """Another file that is read with this section's settings."""
        return SourceConfig(path=path, format=self.format, columns=self.columns)

    def _source(self, source: SourceConfig) -> SourceConfig:
        own = source.columns is not None or source.format is not None
        return source.model_copy(
            update={
                "format": source.format or ("auto" if own else self.format),
                "columns": source.columns if own else self.columns,
                "max_rows": source.max_rows or self.max_rows,
            }
        )
