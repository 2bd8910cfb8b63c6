"""The rows that one adapter is evaluated on: those of a data file, or the run's own evaluation data."""

from __future__ import annotations

from pathlib import Path

from lamina.adapters.load import Loaded
from lamina.chat.template import ChatTemplate
from lamina.config import DataConfig
from lamina.data.dataset import Dataset, build_dataset, build_evaluation
from lamina.data.example import Example, Kind
from lamina.errors import ConfigError, DataError, Problem
from lamina.losses.base import Loss
from lamina.runs import Run
from lamina.structure.positions import declared_positions

# Of a run's own data that is not what it was.
_OTHER_DATA = "Fix: put it back as it was, or name what to evaluate on with --data FILE."
_MIXED_UP = "rows that it learned may be among those that it is evaluated on"


def evaluation_rows(
    loaded: Loaded,
    run: Run | None,
    data: str | Path | None,
    columns: dict[str, str] | None,
    max_rows: int | None,
    loss: Loss,
) -> tuple[Dataset, slice, list[str]]:
    """Encodes what an adapter is evaluated on.

    Args:
        loaded: The adapter on its base.
        run: Its run; None for an adapter by itself.
        data: A data file; None for the run's own evaluation data.
        columns: Column mapping for `data`; by default the run's.
        max_rows: Only so many rows from the start.
        loss: The run's loss.

    Returns:
        The data, which of its evaluation examples, and what a user should know of it.

    Raises:
        ConfigError: There is no data to evaluate on.
        DataError: It cannot be used, or the run's own lost rows since it was trained.
    """
    if data is None:
        if run is None or run.config.data.eval is None:
            raise ConfigError(
                Problem("--data", "is required: there is no run with evaluation data here.", "give a data file")
            )
        config = run.config
        batch_size = config.train.per_device_train_batch_size
        dataset = build_dataset(
            config.data,
            loaded.template,
            batch_size,
            config.seed,
            notify=None,
            sequences=loss.sequences,
            positions=declared_positions(loaded.model),
        )
        if not len(dataset.eval):
            raise DataError(f"{run.path}: the run has no evaluation rows. Fix: give a file with --data.")
        # Of several sets, each is cut by itself.
        return dataset, slice(None if dataset.eval_sets else max_rows), _changes_since(run, dataset)
    format_name = "classification" if loss.sequences.pooled else "auto"
    changes = {"train": str(data), "columns": columns, "format": format_name, "eval": None, "replay": None}
    changes |= {"stratify_by": None, "group_by": None}
    settings = run.config.data if run else DataConfig(train=str(data))
    if run and columns is None:
        changes["columns"] = settings.columns
    settings = settings.model_copy(update=changes)
    positions = declared_positions(loaded.model)
    dataset = build_evaluation(settings, str(data), "--data", max_rows, loaded.template, loss.sequences, positions)
    return dataset, slice(None), [*dataset.report.warnings, *dataset.report.notes]


def _changes_since(run: Run, dataset: Dataset) -> list[str]:
    """Says which files of a run's evaluation rows have changed, by the digests in its manifest.

    Raises:
        DataError: They have fewer rows than when the run was trained.
    """
    then, now = run.manifest.data or [], dataset.report.files
    if len(then) != len(now):
        message = f"the run was trained with {len(then)} data files, and there are {len(now)} now"
        if sum(file.rows for file in then) > sum(file.rows for file in now):
            raise DataError(f"{run.path}: {message}, with fewer rows. {_OTHER_DATA}")
        return [f"warning: {message}; {_MIXED_UP}"]
    side = "eval" if run.config.data.eval_sources else "train"  # a share is held out of what is trained on
    changed = [
        (file, was) for was, file in zip(then, now, strict=True) if file.role == side and file.sha256 != was.sha256
    ]
    for file, was in changed:
        if file.rows < was.rows:
            raise DataError(
                f"{file.path}: has {file.rows} rows, and had {was.rows} when {run.path} was trained. {_OTHER_DATA}"
            )
    what = _MIXED_UP if side == "train" else "these are not the rows that the run was evaluated on"
    return [f"warning: {file.path} changed since the run was trained; {what}" for file, _ in changed]


def conversations(dataset: Dataset, template: ChatTemplate) -> list[Example]:
    """Returns the evaluation examples, each of which has an answer to compare with.

    Raises:
        DataError: One has none.
    """
    examples = dataset.eval_examples(template)
    if any(example.kind is Kind.TEXT for example in examples):
        raise DataError("plain text has no answers to compare with. Fix: leave --exact-match out.")
    if any(example.tokens is not None for example in examples):
        raise DataError("rows of tokens have no text to compare answers with. Fix: leave --exact-match out.")
    return examples
