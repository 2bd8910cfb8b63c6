"""Builds the data of a run: reads, encodes, splits, cuts and mixes, and accounts for every row on the way."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from lamina.config import DataConfig, SourceConfig
from lamina.data.encoded_file import EncodedFile, encode_file
from lamina.data.example import Example, Kind
from lamina.data.mix import draw_replay, weigh
from lamina.data.packing import plan_epoch
from lamina.data.read import find_files
from lamina.data.remarks import file_notes
from lamina.data.report import DROP_REASONS, DataReport, FileReport
from lamina.data.side import Pieces, Side, parts_of, whole_rows, wrapped_pieces
from lamina.data.source import SourceReader, used_examples
from lamina.data.split import hold_out
from lamina.data.template import ChatTemplate
from lamina.errors import DataError

Notify = Callable[[str], None]

# What `lamina train` learns from; the other kinds need losses of their own.
TRAINABLE = (Kind.CONVERSATION, Kind.TEXT)


@dataclass(frozen=True)
class Dataset:
    """The encoded data of a run.

    Attributes:
        train: Training examples, in file order, each source as often as its weight says.
        eval: Evaluation examples; empty when there are none.
        report: What became of every row.
        eval_files: The files that evaluation examples come from, by the number of their source.
        train_blocks: int64, shape (training examples,): the micro-batch of each, where that is settled for all epochs.
    """

    train: Side
    eval: Side
    report: DataReport
    eval_files: dict[int, EncodedFile]
    train_blocks: np.ndarray | None = None

    def eval_examples(self) -> list[Example]:
        """The evaluation examples as conversations, for generation; their files are read again."""
        found: list[Example] = []
        for source, file in self.eval_files.items():
            wanted = set(self.eval.rows(source).tolist())
            found += [row.example for row in used_examples(file.reader()) if row.example and row.number in wanted]
        return found


def build_dataset(
    config: DataConfig, template: ChatTemplate, batch_size: int, seed: int, notify: Notify | None = None
) -> Dataset:
    """Reads and encodes a run's data; what was encoded before is taken from the cache.

    Args:
        config: The `data:` section.
        template: Renders conversations.
        batch_size: `per_device_train_batch_size`, for the packing figures of the report.
        seed: Decides split, mix and replay.
        notify: Told what is being done with large files.

    Raises:
        ConfigError: A file does not exist.
        DataError: A row is not what its format asks for, or nothing is left to train on.
    """
    training = list(_open_sources(config, config.sources, "data.train", "train", template, notify))
    held_out_files = replayed = list[EncodedFile]()
    if isinstance(config.eval, str):
        sources = [config.source_of(config.eval)]
        held_out_files = list(_open_sources(config, sources, "data.eval", "eval", template, notify))
    if config.replay is not None:
        replay = config.replay
        sources = [SourceConfig(path=replay.path, format=replay.format, columns=replay.columns)]
        replayed = list(_open_sources(config, sources, "data.replay.path", "replay", template, notify))
    every = [*training, *held_out_files, *replayed]
    stores = [file.store for file in every]
    stop = template.stop_token_ids

    chosen = _split(config, training, seed)
    train_parts, eval_parts = [], []
    for source, file in enumerate(every):
        held_out = (
            chosen[source] if file.report.role == "train" else np.full(len(file.store), file.report.role == "eval")
        )
        eval_parts.append(fit(file, source, np.flatnonzero(held_out), config, stop))
        rows = fit(file, source, np.flatnonzero(~held_out), config, stop)
        train_parts.append(weigh(rows, file, seed) if file.report.role == "train" else rows)
    if config.replay is not None:
        learnt = sum(int(part.length.sum()) for part in train_parts[: len(training)])
        first = len(training) + len(held_out_files)
        train_parts[first:] = draw_replay(train_parts[first:], replayed, config.replay.share, learnt, seed)
    train, evaluation = Side(stores, Pieces.join(train_parts)), Side(stores, Pieces.join(eval_parts))
    blocks = None
    if config.packing_strategy == "wrapped":
        train, blocks = _wrapped(train, every, batch_size * config.max_length, seed, stop)
    _account(every, train, evaluation)
    reports = [file.report for file in every]
    if not len(train):
        raise DataError(_nothing_left(config.sources[0].path, reports))
    if isinstance(config.eval, str) and not len(evaluation):
        raise DataError(_nothing_left(config.eval, [file.report for file in held_out_files]))

    report = DataReport(
        files=reports,
        train=train.report(),
        eval=evaluation.report() if len(evaluation) else None,
        chat_template=template.name,
        stop_token=template.stop_token,
        notes=_notes(config, template, every, train, evaluation, chosen),
    )
    plan = plan_epoch(
        train.lengths, batch_size, config.max_length, config.packing, seed, 0, config.group_by_length, blocks
    )
    report.micro_batches = len(plan)
    if config.packing:
        report.packing_efficiency = int(train.lengths.sum()) / (len(plan) * batch_size * config.max_length)
    eval_files = {source: file for source, file in enumerate(every) if file.report.eval_rows}
    return Dataset(train, evaluation, report, eval_files, blocks)


def build_evaluation(
    config: DataConfig, path: str, field: str, max_rows: int | None, template: ChatTemplate
) -> Dataset:
    """Encodes a file to evaluate on, with a run's settings for data.

    Args:
        config: The `data:` section.
        path: What the user named.
        field: The option that named it, for errors.
        max_rows: Use only so many rows from the start.
        template: Renders conversations.

    Raises:
        ConfigError: The file does not exist.
        DataError: A row is not what its format asks for, or none can be used.
    """
    source = config.source_of(path).model_copy(update={"max_rows": max_rows})
    opened = list(_open_sources(config, [source], field, "eval", template, None))
    stop = template.stop_token_ids
    parts = [fit(file, number, np.arange(len(file.store)), config, stop) for number, file in enumerate(opened)]
    stores = [file.store for file in opened]
    evaluation, nothing = Side(stores, Pieces.join(parts)), Side(stores, Pieces.join([]))
    _account(opened, nothing, evaluation)
    if not len(evaluation):
        raise DataError(_nothing_left(path, [file.report for file in opened]))
    report = DataReport(
        [file.report for file in opened], nothing.report(), evaluation.report(), template.name, template.stop_token
    )
    return Dataset(nothing, evaluation, report, dict(enumerate(opened)))


def load_examples(config: DataConfig, path: str, field: str, max_rows: int | None) -> list[Example]:
    """The usable examples of a file as conversations, without encoding them.

    Args:
        config: The `data:` section, for format and columns.
        path: What the user named.
        field: The option that named it, for errors.
        max_rows: Use only so many rows from the start.
    """
    source = config.source_of(path)
    rows = (
        row
        for file in find_files(path, field)
        for row in used_examples(SourceReader(file, source, config.text_unit), max_rows)
    )
    return [row.example for row in rows if row.example is not None and not row.drop_reason]


def fit(file: EncodedFile, source: int, rows: np.ndarray, config: DataConfig, stop: Sequence[int]) -> Pieces:
    """Rows of a file within `max_length`: longer ones are left out, cut or split, as the config says.

    Args:
        file: The file, whose report takes in what becomes of them.
        source: Its number.
        rows: int64: which of its stored rows.
        config: The `data:` section.
        stop: Ids of the stop tokens.
    """
    store, report = file.store, file.report
    pieces = whole_rows(store, source, rows)
    long = pieces.length > config.max_length
    how = config.overlong
    if how == "auto":
        how = "split" if file.is_text else "drop"
    if how == "drop":
        report.drop_all("longer_than_max_length", store.rows[rows[long]])
        pieces = pieces.take(~long)
    elif long.any():
        parts = [pieces.take(~long)]
        for place in np.flatnonzero(long):
            row = pieces.take(np.array([place]))
            length = int(row.length[0])
            limits = range(config.max_length, length + config.max_length, config.max_length)
            ends = [min(limit, length) for limit in limits] if how == "split" else [config.max_length]
            (report.split if how == "split" else report.cut).add(int(store.rows[rows[place]]))
            parts.append(parts_of(store, row, ends, stop))
        pieces = Pieces.join(parts)
        pieces = pieces.take(np.lexsort((pieces.begin, pieces.index)))
    learnt = pieces.supervised > 0
    if learnt.all():
        return pieces
    kept = pieces.take(learnt)
    report.drop_all("no_supervised_tokens", store.rows[np.setdiff1d(pieces.index, kept.index)])
    return kept


def _open_sources(
    config: DataConfig,
    sources: Sequence[SourceConfig],
    field: str,
    role: str,
    template: ChatTemplate,
    notify: Notify | None,
) -> Iterator[EncodedFile]:
    for source in sources:
        for file in find_files(source.path, field):
            opened = encode_file(file, source, config, role, template, notify)
            wrong = [kind for kind in opened.store.facts.kinds if kind not in TRAINABLE]
            if wrong:
                raise DataError(_not_trainable(file.name, wrong[0], opened.report.format))
            yield opened


def _not_trainable(name: str, kind: str, format_name: str) -> str:
    if kind == Kind.PREFERENCE:
        fix = "to learn the chosen answers by heart, map them: data.columns={prompt: prompt, completion: chosen}"
    else:
        fix = "to learn the wanted answers by heart, keep the rows whose label is true and remove the label"
    return (
        f"{name}: its rows are of the format {format_name!r}, which `lamina train` has no loss for; it learns answers "
        f"and plain text. Fix: {fix}."
    )


def _split(config: DataConfig, training: Sequence[EncodedFile], seed: int) -> list[np.ndarray]:
    """Of each training file, which stored rows are held out for evaluation."""
    stores = [file.store for file in training]
    if not isinstance(config.eval, float):
        return [np.zeros(len(store), dtype=bool) for store in stores]
    held_out = hold_out(
        np.concatenate([store.prompts for store in stores]),
        config.eval,
        seed,
        np.concatenate([store.strata for store in stores]) if config.stratify_by else None,
        np.concatenate([store.groups for store in stores]) if config.group_by else None,
    )
    return np.split(held_out, np.cumsum([len(store) for store in stores])[:-1])


def _wrapped(
    train: Side, every: Sequence[EncodedFile], budget: int, seed: int, stop: Sequence[int]
) -> tuple[Side, np.ndarray]:
    """The training side, cut wherever a micro-batch is full; what that leaves nothing of is named in the reports."""
    pieces, blocks = wrapped_pieces(train, budget, seed, stop)
    cut = Side(train.stores, pieces)
    for source, file in enumerate(every):
        gone = np.setdiff1d(train.indices(source), cut.indices(source))
        file.report.drop_all("no_supervised_tokens", file.store.rows[gone])
    return cut, blocks


def _account(every: Sequence[EncodedFile], train: Side, evaluation: Side) -> None:
    """Completes the files' reports, and asserts that no row was lost on the way."""
    for source, file in enumerate(every):
        file.report.train_rows = len(train.rows(source))
        file.report.eval_rows = len(evaluation.rows(source))
        file.report.train_tokens = int(train.pieces.length[train.pieces.source == source].sum())
        file.report.settle()


def _nothing_left(path: str, reports: Sequence[FileReport]) -> str:
    counts: dict[str, int] = {}
    for report in reports:
        for reason, rows in report.dropped.items():
            counts[reason] = counts.get(reason, 0) + rows.count
    reasons = "; ".join(f"{count} rows: {DROP_REASONS[reason]}" for reason, count in counts.items())
    return f"{path}: no row is left to use: {reasons}. Fix: correct the data, or raise data.max_length."


def _notes(
    config: DataConfig,
    template: ChatTemplate,
    every: Sequence[EncodedFile],
    train: Side,
    evaluation: Side,
    held_out: Sequence[np.ndarray],
) -> list[str]:
    facts = [file.store.facts for file in every]
    notes = list(template.notes)
    notes += template.notes_on(any(f.with_tools for f in facts), any(f.with_thinking for f in facts))
    notes += file_notes(template, facts)
    for file in every:
        notes += file.notes
    if isinstance(config.eval, float):
        if not any(mask.any() for mask in held_out):
            notes.append("all rows have the same prompt, so no evaluation side could be split off without leakage")
        elif not len(evaluation):
            notes.append("every row of the evaluation side was dropped, so nothing will be evaluated")
    elif isinstance(config.eval, str):
        notes += _leaks(every, train, evaluation)
    conversations = np.array([not file.is_text for file in every])[train.pieces.source]
    untaught = int((conversations & ~train.pieces.teaches_stop).sum())
    if untaught:
        notes.append(f"{untaught} of {int(conversations.sum())} training examples do not teach the stop token")
    return notes


def _leaks(every: Sequence[EncodedFile], train: Side, evaluation: Side) -> list[str]:
    trained = np.concatenate([file.store.prompts[train.indices(source)] for source, file in enumerate(every)])
    notes = []
    for source, file in enumerate(every):
        index = evaluation.indices(source)
        leaked = index[np.isin(file.store.prompts[index], trained)]
        if len(leaked):
            first = int(file.store.rows[leaked[0]])
            notes.append(f"{len(leaked)} evaluation rows have a prompt that is also trained on (first: row {first})")
    return notes
