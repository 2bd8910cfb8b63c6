"""Selects what a verification runs on: a few of the user's documents, and a short version of the configuration."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from lamina import files
from lamina.chat.template import template_of
from lamina.config import Config, load_config
from lamina.config.optimizers import OPTIMIZERS
from lamina.data.dataset import Dataset, build_dataset
from lamina.data.example import EncodedExample
from lamina.data.read import RawRow, find_files, rows_of
from lamina.losses.base import build_loss
from lamina.models.load import load_tokenizer
from lamina.models.new_tokens import NewTokens, add_to_tokenizer
from lamina.models.source import find_model
from lamina.progress import Notify
from lamina.quickstart.settings import quickstart_settings, write_rows
from lamina.quickstart.task import build_task

# Documents to compare on, from the first rows of the data; longer ones are used only if there are no others.
DOCUMENTS = 5
ROWS_LOOKED_AT = 200
LONGEST = 256

# The run that is interrupted and resumed: it is interrupted in the step after its first checkpoint.
STEPS = 4
SAVE_STEPS = 2


@dataclass(frozen=True)
class Sample:
    """What a verification runs on.

    Attributes:
        config: The configuration of a short run on a few documents.
        documents: Number of documents.
        tokens: Number of tokens in all of them.
    """

    config: Config
    documents: int
    tokens: int


def quickstart_config(folder: Path, overrides: Iterable[str]) -> Config:
    """Builds the configuration of the quickstart's model and data, and writes the data to `folder`."""
    train_file = folder / "quickstart.jsonl"
    write_rows(train_file, build_task(seed=0, train_rows=ROWS_LOOKED_AT, eval_rows=1).train)
    changes = list(overrides)
    return load_config(quickstart_settings("smollm2-135m", train_file, folder / "unused", 0, changes), changes)


def cut_down(config: Config, folder: Path, notify: Notify) -> Sample:
    """Builds the configuration of a short run on a few documents, and writes these to `folder`.

    Model, method (except its schedule), dtype, seed, optimizer and the handling of data do not change. Micro-batches
    are made small, so that the run has several different ones and steps accumulate (if the optimizer allows it);
    packing fills them up to the longest document.

    Raises:
        LaminaError: The model or the data cannot be used.
    """
    tokenizer = load_tokenizer(find_model(config.model, notify))
    add_to_tokenizer(tokenizer, NewTokens.of(config.data))
    template = template_of(tokenizer, config.data)
    source = config.data.sources[0]
    alone = {"eval": None, "replay": None, "stratify_by": None, "group_by": None}
    file = find_files(source.path)[0]
    loss = build_loss(config.loss)

    def read(rows: int | None) -> Dataset:
        first = source.model_copy(update={"path": file.name, "max_rows": rows, "weight": 1.0})
        looked_at = config.data.model_copy(update={**alone, "train": [first], "max_dropped": 1.0})
        size = config.train.per_device_train_batch_size
        return build_dataset(looked_at, template, size, config.seed, sequences=loss.sequences)

    dataset = read(min(source.max_rows or ROWS_LOOKED_AT, ROWS_LOOKED_AT))
    label = loss.sequences.label
    if len(_groups(dataset.train, label)) == 1:  # the others come later in the file
        dataset = read(source.max_rows)
    documents = choose_documents(dataset.train, template.stop_token_id, label)

    wanted = {document.row for document in documents}
    values_of = {
        row.number: row.value
        for row in islice(rows_of(file, config.data.text_unit), max(wanted))
        if isinstance(row, RawRow)
    }
    lines = [json.dumps(values_of[document.row], ensure_ascii=False, default=str) for document in documents]
    sample = folder / "sample.jsonl"
    files.write_text(sample, "\n".join(lines) + "\n")

    values: dict[str, Any] = config.model_dump(mode="json")
    values["method"] = config.method.shortened(0.0).model_dump(mode="json")
    values["data"] |= {
        **alone,
        "train": str(sample),
        "columns": source.columns or dataset.train.stores[0].facts.guessed or None,
        "overlong": "auto" if config.loss.whole_rows else "cut",
        "format": dataset.report.files[0].format,
        "max_rows": None,
        "max_length": max(8, *(document.longest for document in documents)),
    }
    values["train"] |= {
        "num_train_epochs": None,
        "max_steps": STEPS,
        "save_steps": SAVE_STEPS,
        "per_device_train_batch_size": 1,
        "global_batch_size": None,
        "gradient_accumulation_steps": 1 if OPTIMIZERS[config.train.optim].layerwise else 2,
        "warmup_ratio": 0.0,
        "warmup_steps": 0,
        "eval_steps": None,
        "early_stopping_patience": None,
        "early_stopping_threshold": 0.0,
        "report_to": [],
    }
    small = load_config(values | {"output_dir": str(folder / "session")})
    return Sample(small, len(documents), sum(len(document) for document in documents))


def _groups(examples: Sequence[EncodedExample], label: str) -> set[float]:
    """The labels of some examples; a pair has none, as it has both."""
    return {example.values[label] for example in examples if label and not math.isnan(example.values[label])}


def choose_documents(examples: Sequence[EncodedExample], stop_token_id: int, label: str = "") -> list[EncodedExample]:
    """Chooses a few documents of different lengths, longest first; a single one is used twice.

    If rows have a label, there are documents of two, where the examples have as many.
    """
    with_stop = [e for e in examples if (e.input_ids[e.supervised] == stop_token_id).any()] or examples
    by_length = sorted(with_stop, key=len)
    short = [example for example in by_length if len(example) <= LONGEST] or by_length[:DOCUMENTS]
    count = min(DOCUMENTS, len(short))
    last = len(short) - 1
    chosen = [short[last - last * place // max(1, count - 1)] for place in range(count)]
    groups = _groups(chosen, label)
    if len(groups) == 1:
        others = (example for example in (*short, *by_length) if _groups([example], label) - groups)
        chosen[-1] = next(others, chosen[-1])
    return chosen if count > 1 else chosen * 2
