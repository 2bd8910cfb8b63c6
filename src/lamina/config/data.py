"""`data:` section: what to train on, and how a row becomes tokens."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from lamina import plugins
from lamina.config.section import Section

Share = Annotated[float, Field(gt=0.0, lt=1.0)]
if TYPE_CHECKING:
    FormatName = str
else:
    FormatName = Literal[("auto", *plugins.members("formats"))]
Token = Annotated[str, Field(min_length=1)]
TextUnit = Literal["auto", "line", "paragraph", "file"]

# The fields that `columns` may map: those that the built-in formats read.
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
    "input_ids",
    "labels",
    "attention_mask",
    "completion_mask",
    "assistant_masks",
)

# A name of an evaluation set, which becomes part of the names of metrics.
SET_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")

# Variables of a chat template that come from the conversation itself.
RESERVED_KWARGS = ("messages", "tools", "add_generation_prompt")

# Settings that only a chat template makes use of.
_OF_TEMPLATE = ("chat_template", "chat_template_kwargs", "enable_thinking", "thinking")


def known_fields(columns: dict[str, str] | None) -> dict[str, str] | None:
    """Checks that a column mapping fills fields that a format reads.

    Raises:
        ValueError: It names another field.
    """
    if any(member.package for member in plugins.members("formats").values()):
        return columns  # the fields of a plug-in's format are only known once it is imported
    unknown = [field for field in columns or {} if field not in MAPPABLE_FIELDS]
    if unknown:
        raise ValueError(
            f"columns maps unknown fields: {', '.join(map(repr, unknown))}; allowed: {', '.join(MAPPABLE_FIELDS)}. "
            "Write field: column, such as {prompt: question, completion: answer}."
        )
    return columns


class SourceConfig(Section):
    """One of several training sources. Settings not given here are taken from `data`."""

    path: str
    """File, folder, `folder:split`, glob, or data set on the hub (`user/name[/configuration][:split]`)."""

    weight: Annotated[float, Field(gt=0.0, le=100.0)] = 1.0
    """How often its rows are seen per epoch: 2 uses every row twice, 0.5 uses a random half (drawn with `seed`)."""

    format: FormatName | None = None
    """Format of its rows."""

    columns: dict[str, str] | None = None
    """Its column mapping: field -> column, or a Jinja template over the columns."""

    max_rows: Annotated[int, Field(ge=1)] | None = None
    """Use only the first `max_rows` rows."""

    _check_columns = field_validator("columns")(known_fields)


class EvalSource(Section):
    """One of several evaluation sets. Settings not given here are taken from `data`."""

    path: str
    """File, folder, `folder:split`, glob, or data set on the hub."""

    format: FormatName | None = None
    """Format of its rows."""

    columns: dict[str, str] | None = None
    """Its column mapping: field -> column, or a Jinja template over the columns."""

    max_rows: Annotated[int, Field(ge=1)] | None = None
    """Use only the first `max_rows` rows."""

    _check_columns = field_validator("columns")(known_fields)


class ReplayConfig(Section):
    """General text mixed into the training data to reduce forgetting."""

    path: str
    """File, folder, glob, or data set on the hub, in any format."""

    share: Share = 0.05
    """Share of an epoch's training tokens. The rows are drawn with `seed`."""

    format: FormatName = "auto"
    """Format of its rows."""

    columns: dict[str, str] | None = None
    """Its column mapping: field -> column, or a Jinja template over the columns."""

    _check_columns = field_validator("columns")(known_fields)


class DataConfig(Section):
    """Where the examples come from, and how they are rendered, truncated and packed."""

    train: str | list[str | SourceConfig]
    """File, folder, glob or data set on the hub, or a list of these; an item can also be a section with a `path` and a
    `weight`."""

    eval: Share | Annotated[int, Field(ge=1)] | str | dict[str, str | EvalSource] | None = 0.1
    """Evaluation data: a file or folder, a share of `train` to split off or about how many of its rows (rows with the
    same prompt stay on one side), or null.

    Several sets by name, `{NAME: path, ...}`, are evaluated one by one; each can also be a section with a `path`.
    `train.best_eval` names the one that picks the best checkpoint.
    """

    format: FormatName = "auto"
    """Format of the rows; `auto` detects it from the rows."""

    columns: dict[str, str] | None = None
    """Column mapping for the format's fields: field -> column, or a Jinja template over the columns.

    For example, `{prompt: question, completion: answer}` or `{prompt: "{{ title }}: {{ body }}", completion: summary}`.
    """

    max_rows: Annotated[int, Field(ge=1)] | None = None
    """Use only the first rows of each training file; the data report counts the rest."""

    max_dropped: Annotated[float, Field(ge=0.0, le=1.0)] = 0.5
    """Largest share of a source's rows that may be dropped, for example because they are too long. Dropping more is an
    error."""

    text_unit: TextUnit = "auto"
    """Unit of a plain text file that becomes one document; `auto` decides from the lines."""

    stratify_by: str | None = None
    """Column whose proportions the evaluation split preserves."""

    group_by: str | None = None
    """Column whose equal values stay on one side of the split, such as a conversation id."""

    replay: ReplayConfig | None = None
    """General text to mix into the training data to reduce forgetting."""

    max_length: Annotated[int, Field(ge=8)] = 1024
    """Maximum length of an example in tokens, and the unit of the packing budget."""

    overlong: Literal["auto", "drop", "cut", "split"] = "auto"
    """What to do with a longer example.

    `drop` leaves it out. `cut` truncates it, so that it loses its end and its stop token. `split` divides it into
    several examples. `auto` splits plain text and drops conversations.
    """

    packing: bool = True
    """Fill each micro-batch with up to `per_device_train_batch_size` x `max_length` tokens instead of a fixed number of
    examples."""

    packing_strategy: Literal["bfd", "wrapped"] = "bfd"
    """How packing fills a micro-batch.

    `bfd` packs whole examples (best fit, longest first). `wrapped` concatenates examples and cuts wherever a
    micro-batch is full, the same way in every epoch; the second part of an example that was cut does not see the first.
    """

    group_by_length: bool = False
    """Without packing, group examples of similar length into the same micro-batch."""

    train_on: Literal["assistant", "completions", "marked", "all"] = "assistant"
    """Which tokens are in the loss.

    `assistant`: every assistant turn. `completions`: only the last one. `marked`: only what the data marks (`train:
    true` or `weight: 1` on a turn, `train: true` on a part of it). `all`: everything. A turn with `weight: 0` or
    `train: false` is always left out.
    """

    thinking: Literal["keep", "strip", "unsupervised"] = "keep"
    """Reasoning in an answer: `keep` it in the loss, `strip` it from the text, or leave it in the text but out of the
    loss (`unsupervised`)."""

    enable_thinking: bool | None = None
    """Value of `enable_thinking` that the chat template gets, in training and in generation; null leaves the default to
    the template.

    A row's own `chat_template_kwargs` take precedence.
    """

    add_tokens: list[Token] = Field(default_factory=list)
    """Tokens to add to the tokenizer, each text that becomes one token. Embedding and head get rows for them, which
    start near the mean of the others; the method trains and saves these rows."""

    special_tokens: list[Token] = Field(default_factory=list)
    """The same for special tokens, which are left out of decoded text."""
    chat: bool | None = None
    """Whether prompts and completions are rendered with the chat template.

    `false` takes prompt, completion and text as they are: the text is BOS if the tokenizer adds it, prompt, completion
    and EOS. Afterwards, prompts are not rendered either. By default, conversations and prompts are rendered, and a run
    on plain text alone is used without the template afterwards; `true` uses the template after such a run, too.
    """

    chat_template_kwargs: dict[str, Any] | None = None
    """Variables for the chat template, in training and in generation, such as `{reasoning_effort: low}`.

    A row's own `chat_template_kwargs` take precedence, one by one.
    """

    chat_template: str | None = None
    """A built-in template, a Jinja file, or a Jinja text to use instead of the model's own template."""

    _check_columns = field_validator("columns")(known_fields)

    @field_validator("train")
    @classmethod
    def _check_train(cls, train: str | list[str | SourceConfig]) -> str | list[str | SourceConfig]:
        if not train:
            raise ValueError("train names no data. Give a path, or a list with at least one path.")
        return train

    @field_validator("eval")
    @classmethod
    def _check_eval(cls, value: object) -> object:
        if not isinstance(value, dict):
            return value
        if not value:
            raise ValueError("eval names no data. Give {NAME: path, ...}, or null for no evaluation.")
        wrong = next((name for name in value if not SET_NAME.fullmatch(str(name))), None)
        if wrong is not None:
            raise ValueError(f"eval has a set named {wrong!r}; a name has letters, digits, '_', '-' and '.' only.")
        return value

    @model_validator(mode="after")
    def _check_pairs(self) -> DataConfig:
        if self.group_by_length and self.packing:
            raise ValueError(
                "group_by_length has no effect with packing. Set packing: false, or remove group_by_length."
            )
        if self.packing_strategy != "bfd" and not self.packing:
            raise ValueError(
                f"packing_strategy {self.packing_strategy!r} has no effect without packing. Set packing: true, or "
                "remove packing_strategy."
            )
        named = [*self.add_tokens, *self.special_tokens]
        twice = next((token for token in named if named.count(token) > 1), None)
        if twice is not None:
            raise ValueError(f"add_tokens and special_tokens name {twice!r} more than once. Name each token once.")
        for name in ("stratify_by", "group_by"):
            if getattr(self, name) is not None and not self.splits_off:
                raise ValueError(
                    f"{name} has no effect unless eval is a share of train. Set eval: 0.1, or remove {name}."
                )
        return self

    @model_validator(mode="after")
    def _check_template(self) -> DataConfig:
        kwargs = self.chat_template_kwargs or {}
        taken = [name for name in kwargs if name in RESERVED_KWARGS]
        if taken:
            raise ValueError(f"chat_template_kwargs set {taken[0]!r}, which is reserved for the conversation itself.")
        switches = [name for name in ("enable_thinking", "thinking") if name in kwargs]
        if switches and self.enable_thinking is not None:
            raise ValueError(
                f"enable_thinking is given, and {switches[0]!r} in chat_template_kwargs too. Remove one of them."
            )
        if self.chat is False:
            default = type(self).model_fields
            given = [name for name in _OF_TEMPLATE if getattr(self, name) != default[name].default]
            if given:
                raise ValueError(
                    f"{given[0]} has no effect with chat: false, which uses no chat template. Remove one of them."
                )
        return self

    @property
    def splits_off(self) -> bool:
        """Whether the evaluation rows are split off the training rows."""
        return isinstance(self.eval, float | int)

    @property
    def sources(self) -> list[SourceConfig]:
        """The training data as a list of sources, with the settings of `data` filled in."""
        listed = [self.train] if isinstance(self.train, str) else self.train
        return [self._source(SourceConfig(path=item) if isinstance(item, str) else item) for item in listed]

    @property
    def eval_sources(self) -> dict[str, SourceConfig]:
        """The evaluation data that has files of its own, by name; the name is empty for a single set without one."""
        if isinstance(self.eval, str):
            return {"": self.source_of(self.eval)}
        named = self.eval if isinstance(self.eval, dict) else {}
        return {name: self._eval_source(source) for name, source in named.items()}

    def _eval_source(self, source: str | EvalSource) -> SourceConfig:
        if isinstance(source, str):
            return self.source_of(source)
        own = SourceConfig(path=source.path, format=source.format, columns=source.columns, max_rows=source.max_rows)
        return self._source(own).model_copy(update={"max_rows": source.max_rows})

    def source_of(self, path: str) -> SourceConfig:
        """Returns a source for another file, read with this section's settings."""
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
