"""What can be found out about a run before anything is written or loaded: data files, their first rows, the base."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lamina.chat.template import template_of
from lamina.config import Config
from lamina.config.aliases import ALIASES
from lamina.data.dataset import build_dataset
from lamina.data.length import check_length
from lamina.data.source import SourceReader, open_sources
from lamina.distributed.assign import sharing
from lamina.losses.base import build_loss
from lamina.models.load import load_tokenizer
from lamina.models.new_tokens import NewTokens, add_to_tokenizer
from lamina.models.source import find_model
from lamina.models.vocabulary import positions_in
from lamina.progress import Notify
from lamina.runs import check_start
from lamina.trackers.open import check_trackers


def check_inputs(config: Config) -> None:
    """Checks that data and base of a run are there, and that the first rows have a format. It takes milliseconds.

    Raises:
        ConfigError: A file or the base does not exist.
        DataError: The first rows of a file have no known format, or there are none.
        ModelError: The base's folder is no model.
    """
    check_trackers(config.train.report_to)
    if not (config.model in ALIASES or config.model.endswith(".gguf") or _is_hub_id(config.model)):
        find_model(config.model)
    for opened in open_sources(config.data, "train", "eval", "replay"):
        for file in opened.files:
            if file.path is not None:  # one on the hub is opened when it is read
                next(iter(SourceReader(file, opened.source, config.data.text_unit)), None)


@dataclass(frozen=True)
class RunPlan:
    """How long a run will be.

    Attributes:
        train_rows, eval_rows: Examples of each side.
        tokens: Tokens of an epoch.
        supervised_tokens: Those in the loss.
        longest: Tokens of the longest training example.
        micro_batches: Micro-batches of an optimizer step, over all processes together.
        micro_batch: What one holds, such as "4 rows".
        rows_per_step: Training examples of a whole optimizer step; a mean, if micro-batches are packed.
        steps_per_epoch: Optimizer steps of an epoch.
        total_steps: Optimizer steps of the run.
        data_report: What happens to the rows, in lines.
    """

    train_rows: int
    eval_rows: int
    tokens: int
    supervised_tokens: int
    longest: int
    micro_batches: int
    micro_batch: str
    rows_per_step: float
    steps_per_epoch: int
    total_steps: int
    data_report: list[str]

    def line(self) -> str:
        """Returns the plan in one line."""
        epochs = self.total_steps / self.steps_per_epoch
        return (
            f"{self.train_rows:,} training and {self.eval_rows:,} evaluation rows; {self.total_steps:,} steps "
            f"({epochs:.3g} epochs of {self.steps_per_epoch:,}), {round(self.tokens * epochs):,} tokens; the longest "
            f"row has {self.longest:,}"
        )

    def step_line(self, processes: int) -> str:
        """Says what a step is made of, and how so many processes share it."""
        many = "micro-batch" if self.micro_batches == 1 else "micro-batches"
        about = "" if self.micro_batch.endswith("rows") else "about "
        return (
            f"a step has {about}{self.rows_per_step:.3g} rows: {self.micro_batches} {many} of {self.micro_batch}, "
            f"{sharing(self.micro_batches, processes)}"
        )

    def as_json(self) -> dict[str, Any]:
        """Converts to plain data."""
        return asdict(self)


def plan_run(config: Config, notify: Notify = lambda message: None) -> RunPlan:
    """Reads and encodes the data of a run, without its weights, and says how long it will be. Writes no run.

    Raises:
        ConfigError, DataError, ModelError, RunError: As `train`, as far as it can be known.
    """
    check_start(config, resume=False)
    check_inputs(config)
    loss = build_loss(config.loss)
    found = find_model(config.model, notify)
    positions = positions_in(found.folder)
    check_length(config.data, positions)
    tokenizer = load_tokenizer(found)
    add_to_tokenizer(tokenizer, NewTokens.of(config.data))
    template = template_of(tokenizer, config.data)
    size = config.train.per_device_train_batch_size
    dataset = build_dataset(config.data, template, size, config.seed, notify, loss.sequences, positions)
    micro_batches = config.train.micro_batches_per_step
    steps = math.ceil(dataset.report.micro_batches / micro_batches)
    return RunPlan(
        train_rows=len(dataset.train),
        eval_rows=len(dataset.eval),
        tokens=dataset.report.train.tokens,
        supervised_tokens=int(dataset.train.pieces.supervised.sum()),
        longest=dataset.train.longest,
        micro_batches=micro_batches,
        micro_batch=f"{size} x {dataset.max_length:,} tokens" if config.data.packing else f"{size} rows",
        rows_per_step=min(1.0, micro_batches / dataset.report.micro_batches) * len(dataset.train)
        if config.data.packing
        else min(size * micro_batches, len(dataset.train)),
        steps_per_epoch=steps,
        total_steps=config.train.max_steps or max(1, math.ceil(steps * (config.train.epochs or 0.0))),
        data_report=dataset.report.lines(),
    )


def _is_hub_id(ref: str) -> bool:
    is_local = ref.startswith((".", "~")) or Path(ref).is_absolute() or Path(ref).exists()
    return ref.count("/") == 1 and not is_local
