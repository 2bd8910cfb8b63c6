"""Builds the data of a run: reads, encodes, splits, truncates and mixes rows, and accounts for every one of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice

import numpy as np

from lamina.chat.template import ChatTemplate
from lamina.config import DataConfig
from lamina.data.dataset_notes import dataset_notes, read_twice
from lamina.data.encoded_file import EncodedFile, encode_file
from lamina.data.example import Example
from lamina.data.length import check_length, length_notes, with_length
from lamina.data.lost import lost_line, lost_rows, nothing_left
from lamina.data.mix import draw_replay, weigh
from lamina.data.no_loss import TRIED, no_loss_fix
from lamina.data.packing import plan_epoch
from lamina.data.read import find_files
from lamina.data.recognize import recognized_rows
from lamina.data.report import CHOSEN_REASONS, DataReport
from lamina.data.sequences import ANSWERS, Sequences
from lamina.data.side import Pieces, Side, parts_of, whole_rows, wrapped_pieces
from lamina.data.source import OpenSource, SourceReader, open_sources, used_examples
from lamina.data.split import hold_out
from lamina.errors import ConfigError, DataError, Problem
from lamina.progress import Notify


@dataclass(frozen=True)
class Dataset:
    """The encoded data of a run.

    Attributes:
        train: Training examples, in file order, each source repeated by its weight.
        eval: Evaluation examples; may be empty.
        report: What happened to every row.
        eval_files: The files that evaluation examples come from: index of the file -> file.
        max_length: The `data.max_length` in use: the given one, or what follows from model and data.
        train_blocks: int64, shape (training examples,): the micro-batch of each example, if it is the same in every
            epoch.
        eval_dropped: Number of dropped evaluation rows, by reason.
        eval_sets: The examples of each evaluation set by its name, in `eval`; empty if sets have no names.
    """

    train: Side
    eval: Side
    report: DataReport
    eval_files: dict[int, EncodedFile]
    max_length: int
    train_blocks: np.ndarray | None = None
    eval_dropped: dict[str, int] = field(default_factory=dict)
    eval_sets: dict[str, slice] = field(default_factory=dict)

    def eval_examples(self, template: ChatTemplate) -> list[Example]:
        """Returns the evaluation examples as conversations, for generation. Reads their files again.

        Args:
            template: Recognizes conversations that were rendered before.
        """
        found: list[Example] = []
        for file_index, file in self.eval_files.items():
            wanted = set(self.eval.rows(file_index).tolist())
            rows = recognized_rows(used_examples(file.reader()), template)
            found += [row.example for row in rows if row.example and row.number in wanted]
        return found


def build_dataset(
    config: DataConfig,
    template: ChatTemplate,
    batch_size: int,
    seed: int,
    notify: Notify | None = None,
    sequences: Sequences = ANSWERS,
    positions: int | None = None,
) -> Dataset:
    """Reads and encodes a run's data; rows that are already encoded come from the cache.

    Args:
        config: The `data:` section.
        template: Renders conversations.
        batch_size: `per_device_train_batch_size`, for the packing statistics of the report.
        seed: Seed of the split, the mix and the replay.
        notify: Reports progress on large files.
        sequences: How rows become sequences.
        positions: The model's positions; None if unknown.

    Raises:
        ConfigError: A file does not exist, `max_length` is more than the model's positions, or the packing strategy
            would cut sequences that belong together.
        DataError: A row does not fit its format, or there is nothing left to train on.
    """
    check_length(config, positions)
    every = _encode(open_sources(config, "train", "eval", "replay"), config, template, sequences, notify)
    given, config = config, with_length(config, every, positions)
    training, held_out_files, replayed = (
        [file for file in every if file.report.role == side] for side in ("train", "eval", "replay")
    )
    stores = [file.store for file in every]
    stop = template.stop_token_ids

    chosen = _split(config, training, seed)
    train_parts, eval_parts, eval_dropped = [], [], dict[str, int]()
    for file_index, file in enumerate(every):
        held_out = (
            chosen[file_index] if file.report.role == "train" else np.full(len(file.store), file.report.role == "eval")
        )
        before = file.report.counts_dropped() if file.report.role == "train" else {}
        eval_parts.append(fit(file, file_index, np.flatnonzero(held_out), config, stop))
        if file.report.role != "replay":
            _add(eval_dropped, file.report.counts_dropped(), before)
        rows = fit(file, file_index, np.flatnonzero(~held_out), config, stop)
        train_parts.append(weigh(rows, file, seed) if file.report.role == "train" else rows)
    if config.replay is not None:
        in_loss = sum(int(part.length.sum()) for part in train_parts[: len(training)])
        first = len(training) + len(held_out_files)
        train_parts[first:] = draw_replay(train_parts[first:], replayed, config.replay.share, in_loss, seed)
    train, evaluation = Side(stores, Pieces.join(train_parts)), Side(stores, Pieces.join(eval_parts))
    blocks = None
    if config.packing_strategy == "wrapped":
        _check_uncut(every)
        train, blocks = _wrapped(train, every, batch_size * config.max_length, seed, stop)
    _account(every, train, evaluation)
    if not len(train):
        raise DataError(nothing_left(training, config, positions))
    by_set = {file.eval_set: [f for f in held_out_files if f.eval_set == file.eval_set] for file in held_out_files}
    for of_set in by_set.values():
        if not any(file.report.eval_rows for file in of_set):
            raise DataError(nothing_left(of_set, config, positions))

    notes = [
        *length_notes(given, config, positions),
        *dataset_notes(config, template, every, train, evaluation, chosen),
    ]
    report = DataReport(
        files=[file.report for file in every],
        train=train.report(),
        eval=evaluation.report() if len(evaluation) else None,
        chat_template=template.name,
        stop_token=template.stop_token,
        notes=notes,
        warnings=[*lost_rows(every, config, positions), *read_twice(training)],
    )
    plan = plan_epoch(
        train.lengths, batch_size, config.max_length, config.packing, seed, 0, config.group_by_length, blocks
    )
    report.micro_batches = len(plan)
    if config.packing:
        report.packing_efficiency = int(train.lengths.sum()) / (len(plan) * batch_size * config.max_length)
    eval_files = {file_index: file for file_index, file in enumerate(every) if file.report.eval_rows}
    sets = _eval_sets(every, evaluation)
    return Dataset(train, evaluation, report, eval_files, config.max_length, blocks, eval_dropped, sets)


def build_evaluation(
    config: DataConfig,
    path: str,
    field: str,
    max_rows: int | None,
    template: ChatTemplate,
    sequences: Sequences = ANSWERS,
    positions: int | None = None,
) -> Dataset:
    """Encodes a file for evaluation, with a run's data settings.

    Args:
        config: The `data:` section.
        path: The path from the user.
        field: The option it was given with, for errors.
        max_rows: Use only the first `max_rows` rows.
        template: Renders conversations.
        sequences: How rows become sequences.
        positions: The model's positions; None if unknown.

    Raises:
        ConfigError: The file does not exist.
        DataError: A row does not fit its format, or no row can be used.
    """
    source = config.source_of(path).model_copy(update={"max_rows": max_rows})
    opened = _encode([OpenSource("eval", source, find_files(path, field, "test"))], config, template, sequences, None)
    config = with_length(config, opened, positions)
    stop = template.stop_token_ids
    parts = [fit(file, number, np.arange(len(file.store)), config, stop) for number, file in enumerate(opened)]
    stores = [file.store for file in opened]
    evaluation, nothing = Side(stores, Pieces.join(parts)), Side(stores, Pieces.join([]))
    _account(opened, nothing, evaluation)
    if not len(evaluation):
        raise DataError(nothing_left(opened, config, positions))
    report = DataReport(
        files=[file.report for file in opened],
        train=nothing.report(),
        eval=evaluation.report(),
        chat_template=template.name,
        stop_token=template.stop_token,
        notes=[note for file in opened for note in file.notes],
        warnings=lost_rows(opened, config.model_copy(update={"max_dropped": 1.0}), positions),
    )
    dropped: dict[str, int] = {}
    for file in opened:
        _add(dropped, file.report.counts_dropped(), {})
    files = dict(enumerate(opened))
    return Dataset(nothing, evaluation, report, files, config.max_length, eval_dropped=dropped)


def load_examples(config: DataConfig, path: str, field: str, max_rows: int | None) -> list[Example]:
    """Returns the usable examples of a file as conversations, without encoding them.

    Args:
        config: The `data:` section, for format and columns.
        path: The path from the user.
        field: The option it was given with, for errors.
        max_rows: Use only the first `max_rows` rows.

    Raises:
        DataError: A row cannot be read, or `data.max_dropped` does not allow so many dropped rows.
    """
    source, usable, lost = config.source_of(path), list[Example](), Counter[str]()
    for file in find_files(path, field, "test"):
        for row in used_examples(SourceReader(file, source, config.text_unit), max_rows):
            if row.example is not None and not row.drop_reason:
                usable.append(row.example)
            elif row.drop_reason not in CHOSEN_REASONS:
                lost[row.drop_reason] += 1
    rows = len(usable) + lost.total()
    if lost.total() > config.max_dropped * rows:
        raise DataError(f"{path}: {lost_line(lost, rows)}. Fix: complete the rows, or correct data.columns.")
    return usable


def fit(file: EncodedFile, file_index: int, rows: np.ndarray, config: DataConfig, stop: Sequence[int]) -> Pieces:
    """Fits rows of a file into `max_length`: drops, truncates or splits longer rows, as configured.

    A row that must stay whole is dropped if one of its sequences is too long.

    Args:
        file: The file; its report records what happens to the rows.
        file_index: Index of the file among all files.
        rows: int64: which of its stored rows.
        config: The `data:` section.
        stop: Ids of the stop tokens.
    """
    store, report = file.store, file.report
    pieces = whole_rows(store, file_index, rows)
    long = store.longest[rows] > config.max_length
    how = "drop" if file.whole_rows else config.overlong
    if how == "auto":
        how = "cut" if file.pooled else "split" if file.is_text else "drop"
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
    in_loss = pieces.supervised > 0
    if file.pooled or in_loss.all():
        return pieces
    kept = pieces.take(in_loss)
    report.drop_all("no_supervised_tokens", store.rows[np.setdiff1d(pieces.index, kept.index)])
    return kept


def _encode(
    sources: Sequence[OpenSource],
    config: DataConfig,
    template: ChatTemplate,
    sequences: Sequences,
    notify: Notify | None,
) -> list[EncodedFile]:
    encoded = []
    for opened in sources:
        for file in opened.files:
            one = encode_file(file, opened.source, config, opened.side, template, notify, sequences)
            encoded.append(replace(one, eval_set=opened.name))
            wrong = [kind for kind in encoded[-1].store.facts.kinds if kind not in sequences.kinds]
            if wrong:
                raise DataError(_not_trainable(encoded[-1], wrong[0], sequences))
    return encoded


def _eval_sets(every: Sequence[EncodedFile], evaluation: Side) -> dict[str, slice]:
    """Returns the examples of each evaluation set that has a name; those of a set follow each other."""
    sets: dict[str, slice] = {}
    for file_index, file in enumerate(every):
        if file.eval_set:
            places = np.flatnonzero(evaluation.pieces.file_index == file_index)
            if len(places):
                first, end = int(places[0]), int(places[-1]) + 1
                sets[file.eval_set] = slice(sets[file.eval_set].start if file.eval_set in sets else first, end)
    return sets


def _check_uncut(files: Sequence[EncodedFile]) -> None:
    whole = next((file for file in files if file.whole_rows), None)
    if whole is not None:
        message = f"'wrapped' cuts rows anywhere, but the rows of {whole.file.name} have sequences that belong together"
        raise ConfigError(Problem("data.packing_strategy", message, "use 'bfd'"))


def _not_trainable(file: EncodedFile, kind: str, sequences: Sequences) -> str:
    facts = file.store.facts
    what = f"{file.file.name}: its rows have the format {facts.format!r}, which this loss does not support"
    if sequences is not ANSWERS:
        return f"{what}; it supports {sequences.learns}. Fix: choose another `loss`, or rows of that kind."
    first = islice(file.reader(), TRIED)
    rows = [(row.value, row.example) for row in first if row.value is not None and row.example is not None]
    fix = no_loss_fix(kind, rows, file.source, facts.wanted, facts.kinds[kind])
    return (
        f"{file.file.name}: its rows have the format {facts.format!r}, which cross entropy does not learn from; it "
        f"supports answers and plain text. Fix: {fix}."
    )


def _split(config: DataConfig, training: Sequence[EncodedFile], seed: int) -> list[np.ndarray]:
    """Returns, for each training file, which stored rows are held out for evaluation."""
    stores = [file.store for file in training]
    if not isinstance(config.eval, float | int):
        return [np.zeros(len(store), dtype=bool) for store in stores]
    rows = sum(len(store) for store in stores)
    if config.eval >= max(1, rows):
        message = f"asks for {config.eval} of the {rows} rows, which leaves none for training"
        raise ConfigError(Problem("data.eval", message, "set it to less, or to a share such as 0.1"))
    held_out = hold_out(
        np.concatenate([store.prompts for store in stores]),
        config.eval if isinstance(config.eval, float) else config.eval / rows,
        seed,
        np.concatenate([store.strata for store in stores]) if config.stratify_by else None,
        np.concatenate([store.groups for store in stores]) if config.group_by else None,
    )
    return np.split(held_out, np.cumsum([len(store) for store in stores])[:-1])


def _wrapped(
    train: Side, every: Sequence[EncodedFile], budget: int, seed: int, stop: Sequence[int]
) -> tuple[Side, np.ndarray]:
    """Returns the training side, cut wherever a micro-batch is full; reports rows of which nothing remains."""
    pieces, blocks = wrapped_pieces(train, budget, seed, stop)
    cut = Side(train.stores, pieces)
    for file_index, file in enumerate(every):
        gone = np.setdiff1d(train.indices(file_index), cut.indices(file_index))
        file.report.drop_all("no_supervised_tokens", file.store.rows[gone])
    return cut, blocks


def _account(every: Sequence[EncodedFile], train: Side, evaluation: Side) -> None:
    """Completes the files' reports, and asserts that every row is accounted for."""
    for file_index, file in enumerate(every):
        file.report.train_rows = len(train.rows(file_index))
        file.report.eval_rows = len(evaluation.rows(file_index))
        file.report.train_tokens = int(train.pieces.length[train.pieces.file_index == file_index].sum())
        file.report.settle()


def _add(totals: dict[str, int], counts: Mapping[str, int], before: Mapping[str, int]) -> None:
    """Adds the increase of each count to the totals by reason."""
    for reason, count in counts.items():
        if count > before.get(reason, 0):
            totals[reason] = totals.get(reason, 0) + count - before.get(reason, 0)
