"""Which rows of a task training saw: those of the run that is evaluated, as its configuration and its split say."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from lamina import files
from lamina.adapters.adapter import Adapter, read_adapter
from lamina.adapters.load import adapter_folder
from lamina.chat.template import ChatTemplate
from lamina.checks.overlap import Overlap, find_overlaps
from lamina.config import DataConfig
from lamina.data.dataset import build_dataset
from lamina.data.example import Example
from lamina.data.source import SourceReader, open_sources, used_examples
from lamina.errors import LaminaError
from lamina.evaluation.tasks import TaskRow
from lamina.losses.base import build_loss
from lamina.runs import Run, run_of


@dataclass(frozen=True)
class Trained:
    """What an adapter was trained on.

    Attributes:
        examples: Its training rows; empty where they are not known.
        unknown: Why they are not known, in a sentence; empty where they are.
    """

    examples: tuple[Example, ...] = ()
    unknown: str = ""


def prompt_of(example: Example) -> str:
    """What leakage is looked for in: all turns before the answer but the system's; of plain text the text."""
    if example.text:
        return example.text
    return "\n".join(message.words() for message in example.prompt if message.role != "system")


def trained_rows(adapter: Adapter, template: ChatTemplate) -> Trained:
    """The rows that an adapter was trained on, held-out ones left out.

    They are those of its run's configuration, replayed ones included, and those of the adapter that the run started
    from. Files that have changed since are read as they are now, which is said by their digests in the lock; files that
    are gone make the rows unknown.
    """
    run = run_of(adapter.path)
    if run is None or not run.config_path.is_file():
        return Trained(unknown="the adapter is not in its run, whose configuration names the training data")
    try:
        config = run.config
        loss = build_loss(config.loss)
        batch = config.train.per_device_train_batch_size
        data = config.data
        if data.splits_off:
            dataset = build_dataset(data, template, batch, config.seed, None, loss.sequences)
            held_out = {source: set(dataset.eval.rows(source).tolist()) for source in dataset.eval_files}
        else:
            held_out = {}
        examples = tuple(_examples(data, held_out))
        changed = _changed(adapter, data)
    except LaminaError as error:
        return Trained(unknown=f"its training data cannot be read ({error})")
    before = _trained_before(run, config.method.start, template)
    return Trained((*examples, *before.examples), "; ".join(filter(None, (changed, before.unknown))))


def _trained_before(run: Run, start: str | None, template: ChatTemplate) -> Trained:
    """What the adapter that a run started from was trained on, if it did not start from a new one."""
    if start is None:
        return Trained()
    try:
        adapter, was = read_adapter(adapter_folder(start)), read_adapter(run.start)
    except LaminaError:
        adapter = was = None
    if adapter is None or was is None or adapter.digest != was.digest:
        return Trained(unknown=f"it started from {start}, which is not there any more, or is another adapter now")
    found = trained_rows(adapter, template)
    return replace(found, unknown=f"of {start}, which it started from: {found.unknown}") if found.unknown else found


def leaked_rows(rows: Sequence[TaskRow], trained: Trained) -> list[Overlap | None]:
    """Which rows' prompts training saw."""
    if not trained.examples:
        return [None] * len(rows)
    asked = [row.prompt or row.reference for row in rows]
    return find_overlaps(asked, map(prompt_of, trained.examples))


def leak_counts(leaks: Sequence[Overlap | None], trained: Trained) -> dict[str, Any]:
    """How many rows training saw, as plain data."""
    return {
        "exact": sum(leak is not None and leak.kind == "exact" for leak in leaks),
        "near": sum(leak is not None and leak.kind == "near" for leak in leaks),
        "training_rows": len(trained.examples),
        "unknown": trained.unknown,
    }


def _examples(data: DataConfig, held_out: dict[int, set[int]]) -> Iterator[Example]:
    number = 0
    for opened in open_sources(data, "train", "replay"):  # in the order in which training numbers their files
        for file in opened.files:
            left_out = held_out.get(number, set[int]())
            reader = SourceReader(file, opened.source, data.text_unit)
            for row in used_examples(reader, opened.source.max_rows):
                if row.example is not None and not row.drop_reason and row.number not in left_out:
                    yield row.example
            number += 1


def _changed(adapter: Adapter, data: DataConfig) -> str:
    """Which of the training files are not those that the lock names, in a sentence; empty for none."""
    if adapter.lock is None:
        return "the adapter has no lock, which would name its training data"
    known = {str(entry.get("sha256")) for entry in adapter.lock.data}
    sources = open_sources(data, "train", "replay")
    opened = [file for source in sources for file in source.files if file.path is not None]
    changed = [file.name for file in opened if file.path is not None and files.sha256_file(file.path) not in known]
    return f"{', '.join(changed)} changed since the run was trained" if changed else ""
