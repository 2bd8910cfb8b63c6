"""The rows of a task: what is asked, what the answer should be, and a digest by which two evaluations are paired."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from lamina.chat.bounds import TemplateFailure
from lamina.chat.jinja import RowTemplate
from lamina.chat.message import Message
from lamina.config import SourceConfig
from lamina.config.tasks import PromptSettings
from lamina.data.example import Example, Kind
from lamina.data.read import DataFile, Fault, RawRow, find_files, rows_of
from lamina.data.read.open import fault_message
from lamina.data.read.rows import place_of
from lamina.data.source import SourceReader, used_examples
from lamina.errors import ConfigError, DataError, Problem
from lamina.evaluation.tasks.find import Task


@dataclass(frozen=True)
class TaskRow:
    """A row of a task.

    Attributes:
        number: Its place among the task's rows, from 1.
        place: File and row, for messages.
        messages: The conversation that is asked, which ends in a user's turn; empty for plain text.
        reference: What the answer should be; for plain text, the text.
        digest: SHA-256 of what is asked and of the reference.
        columns: The row as it is in the file.
        cluster: What it belongs to; None where each row stands for itself.
        choices: Possible answers, for multiple choice.
        tools: JSON schemas of functions that the conversation offers.
        template_kwargs: Variables of the chat template.
    """

    number: int
    place: str
    messages: tuple[Message, ...]
    reference: str
    digest: str
    columns: Mapping[str, Any]
    cluster: str | None = None
    choices: tuple[str, ...] = ()
    tools: tuple[dict[str, Any], ...] = ()
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)

    @property
    def prompt(self) -> str:
        """All turns but the system's, as text: what leakage is looked for in."""
        return "\n".join(message.words() for message in self.messages if message.role != "system")

    @property
    def question(self) -> str:
        """The last turn."""
        return self.messages[-1].words() if self.messages else ""


def read_task_rows(task: Task) -> list[TaskRow]:
    """Reads the rows of a task.

    Raises:
        ConfigError: The data does not exist, or a template is none.
        DataError: A row cannot be used, the task has no rows, or a row lacks the column to cluster by.
    """
    config, rows = task.config, list[TaskRow]()
    for file in find_files(task.data, f"{task.name}.data", "test"):
        read = _templated(file, config.prompt) if config.prompt else _in_formats(file, task)
        for place, parts, columns in read:
            if config.limit is not None and len(rows) == config.limit:
                break
            rows.append(_row(task, len(rows) + 1, place, parts, columns))
    if not rows:
        raise DataError(f"{task.data}: the task {task.name!r} has no rows that can be asked. Fix: give it some.")
    return rows


@dataclass(frozen=True)
class _Parts:
    """What a row became."""

    messages: tuple[Message, ...]
    reference: str
    choices: tuple[str, ...] = ()
    tools: tuple[dict[str, Any], ...] = ()
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)


def _row(task: Task, number: int, place: str, parts: _Parts, columns: Mapping[str, Any]) -> TaskRow:
    by = task.config.cluster_by
    if by is not None and by not in columns:
        known = ", ".join(map(repr, columns))
        raise DataError(f"{place}: has no column {by!r}, which cluster_by names; it has {known}. Fix: correct it.")
    turns = [_plain(message) for message in parts.messages]
    content = [turns, parts.reference, list(parts.choices), list(parts.tools), dict(parts.template_kwargs)]
    text = json.dumps(content, sort_keys=True, ensure_ascii=False, default=str)
    digest = "sha256:" + hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
    return TaskRow(
        number,
        place,
        parts.messages,
        parts.reference,
        digest,
        columns,
        None if by is None else json.dumps(columns[by], sort_keys=True, ensure_ascii=False, default=str),
        parts.choices,
        parts.tools,
        parts.template_kwargs,
    )


def _plain(message: Message) -> list[Any]:
    calls = [[call.name, call.arguments] for call in message.tool_calls]
    return [message.role, message.content, *([message.thinking] if message.thinking else []), *calls]


def _in_formats(file: DataFile, task: Task) -> Iterator[tuple[str, _Parts, Mapping[str, Any]]]:
    """The rows of a file in one of lamina's formats; rows without an answer are left out, as in training."""
    config = task.config
    source = SourceConfig(path=task.data, format=config.format, columns=config.columns)
    for row in used_examples(SourceReader(file, source)):
        if row.example is not None and not row.drop_reason:
            yield f"{file.name}, row {row.number}", _of_example(row.example), dict(row.value or {})


def _of_example(example: Example) -> _Parts:
    if example.kind is Kind.TEXT:
        return _Parts((), example.text)
    if example.kind is Kind.CLASSIFICATION:
        turns = example.messages or (Message("user", example.text),)
        return _Parts(turns, example.category, (), example.tools, example.template_kwargs)
    last = example.messages[-1]
    reference = last.content or last.words()
    return _Parts(example.prompt, reference, (), example.tools, example.template_kwargs)


def _templated(file: DataFile, prompt: PromptSettings) -> Iterator[tuple[str, _Parts, Mapping[str, Any]]]:
    user, reference = _template(prompt.user, "user"), _template(prompt.reference, "reference")
    system = None if prompt.system is None else _template(prompt.system, "system")
    listed = prompt.choices if isinstance(prompt.choices, list) else []
    choices = [_template(text, f"choices.{number}") for number, text in enumerate(listed)]
    for row in rows_of(file):
        if isinstance(row, Fault):
            raise DataError(fault_message(file, row))
        place = f"{file.name}, {place_of(row)}"
        try:
            turns = [] if system is None else [Message("system", system.render_row(row.value))]
            turns.append(Message("user", user.render_row(row.value)))
            expected = reference.render_row(row.value)
            given = [each.render_row(row.value) for each in choices] or _column(row, prompt, place)
        except TemplateFailure as error:
            raise DataError(
                f"{place}: a template of the task's prompt fails on it: {error}. Fix: correct it."
            ) from None
        yield place, _Parts(tuple(turns), expected, tuple(given)), row.value


def _column(row: RawRow, prompt: PromptSettings, place: str) -> list[str]:
    if not isinstance(prompt.choices, str):
        return []
    found = row.value.get(prompt.choices)
    if isinstance(found, dict):  # as ARC has it: {"text": [...], "label": [...]}
        found = found.get("text")
    if not isinstance(found, list) or len(found) < 2 or not all(isinstance(each, str) for each in found):
        message = f"its column {prompt.choices!r}, which prompt.choices names, is no list of two or more texts"
        raise DataError(f"{place}: {message}. Fix: correct the row, or prompt.choices.")
    return found


def _template(text: str, field: str) -> RowTemplate:
    try:
        return RowTemplate(text)
    except TemplateFailure as error:
        raise ConfigError(
            Problem(f"prompt.{field}", f"{text!r} is not a Jinja template: {error}", "correct it")
        ) from None
