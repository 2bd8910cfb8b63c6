"""`--task FILE.yaml`: which rows a subject is asked, how it answers, and how its answers are scored."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, field_validator, model_validator

from lamina.config.data import FormatName, known_fields
from lamina.config.section import Section

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$"

# The name under which forgetting is reported, beside the tasks of a user.
GENERAL = "general"

Name = Annotated[str, Field(pattern=NAME_PATTERN)]


class GenerationSettings(Section):
    """How answers are drawn."""

    max_tokens: Annotated[int, Field(ge=1)] = 256
    """Longest answer in tokens."""

    temperature: Annotated[float, Field(ge=0.0)] = 0.0
    """A token is drawn from softmax(logits / temperature); 0 takes the most probable one."""

    top_p: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    """Draw from the most probable tokens that together reach this probability."""

    top_k: Annotated[int, Field(ge=0)] = 0
    """Draw from that many of the most probable tokens; 0 for all."""

    stop: list[str] = Field(default_factory=list)
    """Strings that end an answer."""

    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Of the draws; each row draws with this plus its number."""


class PromptSettings(Section):
    """How a row becomes a prompt and a reference, where it has none of lamina's data formats. Each is a Jinja template
    over the row's columns."""

    user: str
    """The user's turn."""

    reference: str
    """What the answer should be."""

    system: str | None = None
    """A system turn before it."""

    choices: list[str] | str | None = None
    """Possible answers, for multiple choice: templates, or the column that holds the list."""


class JudgeSettings(Section):
    """A model that judges answers."""

    subject: str
    """Who judges: a run, an adapter, a base or `http://HOST:PORT/v1#MODEL`."""

    rubric: str | None = None
    """What makes an answer good: each answer gets a grade from 1 to 5, the metric `judge`. Without a rubric the answers
    of each two subjects are compared, in both orders."""

    again: Annotated[int, Field(ge=0)] = 50
    """Rows that are judged a second time, to see whether the judge agrees with itself."""


class TaskConfig(Section):
    """A task."""

    name: Name
    """What tables, files and gates call it."""

    data: str
    """File, folder, glob or data set on the hub; a relative path starts at the folder of the task's file."""

    scorers: list[str | dict[str, Any]] = Field(default_factory=list)
    """Names of scorers, or functions `FILE.py:NAME`, each with options if it has any, such as `[exact_match,
    {json_valid: {schema: s.json}}]`; `{type: json_valid, name: valid, schema: s.json}` names the metric too."""

    judge: str | JudgeSettings | None = None
    """A model that judges the answers beside the scorers, or in their stead: who, or also how."""

    format: FormatName = "auto"
    """Format of the rows; `auto` detects it."""

    columns: dict[str, str] | None = None
    """Column mapping for the format's fields: field -> column, or a Jinja template over the columns."""

    prompt: PromptSettings | None = None
    """How a row becomes a prompt and a reference; by default as for training."""

    generation: GenerationSettings = Field(default_factory=GenerationSettings)
    """How answers are drawn."""

    cluster_by: str | None = None
    """Column whose equal values belong together, such as a document that several questions are about; intervals and
    tests then count documents, not questions."""

    slices: list[str] = Field(default_factory=list)
    """Columns by whose values the page breaks the scores down; by default those with few values."""

    few_shot: Annotated[int, Field(ge=0, le=64)] = 0
    """Examples in the prompt of every subject, from `examples`."""

    examples: str | None = None
    """Where examples come from; by default the training rows of the run that is evaluated."""

    limit: Annotated[int, Field(ge=1)] | None = None
    """Use only the first rows."""

    _check_columns = field_validator("columns")(known_fields)

    @field_validator("name")
    @classmethod
    def _check_name(cls, name: str) -> str:
        if name == GENERAL:
            raise ValueError(f"{name!r} is the name under which forgetting is reported. Choose another.")
        return name

    @field_validator("scorers")
    @classmethod
    def _check_scorers(cls, scorers: list[str | dict[str, Any]]) -> list[str | dict[str, Any]]:
        for scorer in scorers:
            if isinstance(scorer, dict) and "type" not in scorer:
                options = next(iter(scorer.values()), None)
                if len(scorer) != 1 or not isinstance(options, dict | None):
                    raise ValueError(f"{scorer!r} is not a scorer with its options. Write - {{NAME: {{OPTION: ...}}}}.")
        return scorers

    @property
    def judging(self) -> JudgeSettings | None:
        """The judge with its settings."""
        return JudgeSettings(subject=self.judge) if isinstance(self.judge, str) else self.judge

    @property
    def described_scorers(self) -> list[str | dict[str, Any]]:
        """The scorers, each a name or a mapping with its `type`."""
        found: list[str | dict[str, Any]] = []
        for scorer in self.scorers:
            if isinstance(scorer, dict) and "type" not in scorer:
                (kind, options), *_ = scorer.items()
                found.append({"type": kind, **(options or {})})
            else:
                found.append(scorer)
        return found

    @model_validator(mode="after")
    def _check_pairs(self) -> TaskConfig:
        if not self.scorers and self.judge is None:
            raise ValueError("nothing scores the answers. Add scorers: [exact_match], or a judge.")
        if self.prompt is not None and (self.columns is not None or self.format != "auto"):
            raise ValueError("prompt replaces columns and format. Leave those out, or leave prompt out.")
        if self.few_shot == 0 and self.examples is not None:
            raise ValueError("examples has no effect without few_shot. Set few_shot: 4, or remove examples.")
        return self
