"""Builds the data of a run: reads, checks, splits and encodes, and accounts for every row on the way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lamina import files
from lamina.config import DataConfig
from lamina.data.encode import encode_examples
from lamina.data.example import EncodedExample, Example, Message
from lamina.data.formats import choose_format, rename_columns
from lamina.data.formats._fields import RowError
from lamina.data.packing import plan_epoch
from lamina.data.read import read_rows
from lamina.data.report import DROP_REASONS, DataReport, FileReport, TokenReport
from lamina.data.split import split_off_eval
from lamina.data.template import ChatTemplate
from lamina.errors import DataError


@dataclass(frozen=True)
class Dataset:
    """The encoded data of a run.

    Attributes:
        train: Training examples, in file order.
        eval: Evaluation examples; empty when there are none.
        eval_examples: The same evaluation examples as conversations, for generation.
        report: What became of every row.
    """

    train: list[EncodedExample]
    eval: list[EncodedExample]
    eval_examples: list[Example]
    report: DataReport


def build_dataset(config: DataConfig, template: ChatTemplate, batch_size: int, seed: int) -> Dataset:
    """Reads and encodes a run's data.

    Args:
        config: The `data:` section.
        template: Renders conversations.
        batch_size: `per_device_train_batch_size`, for the packing figures of the report.
        seed: Decides the split.

    Raises:
        ConfigError: A file does not exist.
        DataError: A row is not what its format asks for, or nothing is left to train on.
    """
    examples, report = load_examples(config, Path(config.train), "data.train", config.max_rows)
    reports = [report]
    if isinstance(config.eval, float):
        train_examples, eval_examples = split_off_eval(examples, config.eval, seed)
        eval_report = report
    elif isinstance(config.eval, str):
        train_examples = examples
        eval_examples, eval_report = load_examples(config, Path(config.eval), "data.eval", None)
        reports.append(eval_report)
    else:
        train_examples, eval_examples, eval_report = examples, [], report

    train = encode_side(train_examples, config, template, report)
    evaluation = encode_side(eval_examples, config, template, eval_report)
    report.train_rows, eval_report.eval_rows = len(train), len(evaluation)
    for file in reports:
        file.check()
    if not train:
        raise DataError(_nothing_left(config.train, report))
    if isinstance(config.eval, str) and not evaluation:
        raise DataError(_nothing_left(config.eval, eval_report))

    data_report = DataReport(
        files=reports,
        train=TokenReport.of(train),
        eval=TokenReport.of(evaluation) if evaluation else None,
        chat_template=template.name,
        stop_token=template.stop_token,
        notes=_notes(config, template, train, train_examples, evaluation, eval_examples),
    )
    lengths = [len(example) for example in train]
    plan = plan_epoch(lengths, batch_size, config.max_length, config.packing, seed, epoch=0)
    data_report.micro_batches = len(plan)
    if config.packing:
        data_report.packing_efficiency = sum(lengths) / (len(plan) * batch_size * config.max_length)
    kept = {example.row for example in evaluation}
    return Dataset(train, evaluation, [e for e in eval_examples if e.row in kept], data_report)


def load_examples(config: DataConfig, path: Path, field: str, max_rows: int | None) -> tuple[list[Example], FileReport]:
    """Reads one file into examples; rows that cannot be used are dropped by name in the report.

    Args:
        config: The `data:` section, for format and columns.
        path: The file.
        field: The configuration field that named it.
        max_rows: Use only so many rows from the start.
    """
    rows = read_rows(path, field)
    columns = list(dict.fromkeys(key for row in rows for key in row))
    if config.columns:
        used = set(config.columns.values())
        rows = rename_columns(rows, config.columns, path)
    else:
        used = set()
    module = choose_format(rows, config.format, path)
    name = module.__name__.rpartition(".")[2]
    report = FileReport(str(path), files.sha256_file(path), name, len(rows))
    report.ignored_columns = [c for c in columns if c not in (used or {*module.FIELDS, *module.OPTIONAL_FIELDS})]
    examples = []
    for number, row in enumerate(rows, start=1):
        if max_rows is not None and number > max_rows:
            report.drop("after_max_rows", number)
            continue
        try:
            messages: list[Message] = module.parse(row)
        except RowError as error:
            raise DataError(
                f"{path}: row {number} does not fit the format {name!r}: {error}. Fix: correct the row, or set "
                "data.format or data.columns."
            ) from None
        example = _usable(messages, number, report)
        if example is not None:
            examples.append(example)
    return examples, report


def encode_side(
    examples: Sequence[Example], config: DataConfig, template: ChatTemplate, report: FileReport
) -> list[EncodedExample]:
    """Encodes examples, and cuts or drops those that are too long."""
    try:
        encoded = list(encode_examples(examples, template, config.train_on))
    except DataError as error:
        raise DataError(f"{report.path}: {error}") from None
    kept = []
    for item in encoded:
        if len(item) > config.max_length:
            if config.overlong == "drop":
                report.drop("longer_than_max_length", item.row)
                continue
            report.cut.append(item.row)
            item = EncodedExample(item.input_ids[: config.max_length], item.supervised[: config.max_length], item.row)
        if item.supervised_tokens == 0:
            report.drop("no_supervised_tokens", item.row)
            continue
        kept.append(item)
    return kept


def _usable(messages: list[Message], row: int, report: FileReport) -> Example | None:
    answers = [index for index, message in enumerate(messages) if message.role == "assistant"]
    if not answers:
        report.drop("no_assistant_turn", row)
        return None
    kept = messages[: answers[-1] + 1]
    if not all(kept[index].content.strip() for index in answers):
        report.drop("empty_answer", row)
        return None
    if len(kept) == 1:
        report.drop("nothing_before_the_answer", row)
        return None
    if len(kept) < len(messages):
        report.trimmed.append(row)
    return Example(tuple(kept), row)


def _nothing_left(path: str, report: FileReport) -> str:
    reasons = "; ".join(f"{len(rows)} rows: {DROP_REASONS[reason]}" for reason, rows in report.dropped.items())
    return f"{path}: no row is left to use: {reasons}. Fix: correct the data, or raise data.max_length."


def _notes(
    config: DataConfig,
    template: ChatTemplate,
    train: Sequence[EncodedExample],
    train_examples: Sequence[Example],
    evaluation: Sequence[EncodedExample],
    eval_examples: Sequence[Example],
) -> list[str]:
    notes = list(template.notes)
    if isinstance(config.eval, float) and not eval_examples:
        notes.append("all rows have the same prompt, so no evaluation side could be split off without leakage")
    if isinstance(config.eval, float) and eval_examples and not evaluation:
        notes.append("every row of the evaluation side was dropped, so nothing will be evaluated")
    if isinstance(config.eval, str):
        train_rows, eval_rows = {item.row for item in train}, {item.row for item in evaluation}
        trained = {example.prompt_key() for example in train_examples if example.row in train_rows}
        leaked = [e.row for e in eval_examples if e.row in eval_rows and e.prompt_key() in trained]
        if leaked:
            notes.append(
                f"{len(leaked)} evaluation rows have a prompt that is also trained on (first: row {leaked[0]})"
            )
    taught = sum(bool(e.supervised[e.input_ids == template.stop_token_id].any()) for e in train)
    if taught < len(train):
        notes.append(f"{len(train) - taught} of {len(train)} training examples do not teach the stop token")
    return notes
