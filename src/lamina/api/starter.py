"""`lamina init`: a commented configuration for a data file."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import yaml

from lamina import files
from lamina.config import Config, load_config
from lamina.config.named import name_of_run
from lamina.data.formats import DETECT_ROWS, is_mappable
from lamina.data.labels import LabelReading, read_labels
from lamina.data.read import RawRow, find_files, rows_of
from lamina.data.source import SourceReader
from lamina.errors import ConfigError, DataError, Problem

# Rows that are looked at to estimate lengths.
_SAMPLE = 500
# With fewer rows, a share for evaluation says nothing.
_FEW_ROWS = 10
_CHARACTERS_PER_TOKEN = 3
# Passes over the rows. With fewer rows than these, the usual three would be a handful of steps.
_EPOCHS = 3
_EPOCHS_OF_FEW = ((50, 20), (200, 10))
# The loss for a format that has what only that loss learns from, with the reason as a comment.
_LOSSES = {
    "classification": "classification   # the labels are classes; cross_entropy learns the texts alone",
    "preference": "dpo   # chosen answers rather than rejected ones; others: docs/losses",
    "unpaired_preference": "kto   # answers whose label is true rather than the others",
}
_LENGTHS = (256, 512, 1024, 2048, 4096)


@dataclass(frozen=True)
class DataFacts:
    """What a configuration needs to know about data.

    Attributes:
        rows: Number of rows.
        columns: Columns of the first rows.
        format: The format that was recognized; empty if none was.
        refusal: Why none was.
        longest: Characters of the longest row that was looked at.
        labels: How its labels are read; None if it has no texts with labels.
    """

    rows: int
    columns: list[str]
    format: str
    refusal: str
    longest: int
    labels: LabelReading | None = None


@dataclass(frozen=True)
class Starter:
    """A configuration that was written.

    Attributes:
        path: The file.
        rows: Number of rows of the data.
        format: Their format.
        max_length: The maximum length of an example in tokens.
        note: How labels are read; empty without labels.
    """

    path: Path
    rows: int
    format: str
    max_length: int
    note: str = ""

    def as_json(self) -> dict[str, Any]:
        """Converts to plain data."""
        return {**asdict(self), "path": str(self.path)}


def look_at(data: str, columns: Mapping[str, str] | None = None) -> DataFacts:
    """Reads the data once, and finds out what a configuration needs to know.

    Args:
        data: A file, folder or glob.
        columns: A column mapping.

    Raises:
        ConfigError: There is no such file.
        DataError: It has no rows, or cannot be read.
    """
    rows, longest, names = 0, 0, dict[str, None]()
    found = find_files(data, "DATA")
    for file in found:
        for row in rows_of(file):
            rows += 1
            if rows <= _SAMPLE and isinstance(row, RawRow):
                longest = max(longest, len(json.dumps(row.value, ensure_ascii=False, default=str)))
                names |= dict.fromkeys(row.value) if rows <= DETECT_ROWS else {}
    config = load_config({"data": {"train": data, "columns": dict(columns) if columns else None}})
    labels = read_labels(config)
    if labels is not None:
        config = load_config(labels.put_into({"data": config.data.model_dump(exclude_unset=True)}))
    reader = SourceReader(found[0], config.data.source_of(data))
    try:
        list(islice(reader, 1))
        refusal = ""
    except DataError as error:
        refusal = str(error)
    return DataFacts(rows, list(names), reader.format, refusal, longest, labels)


def write_starter(
    data: str, path: Path, *, model: str, columns: Mapping[str, str] | None = None, force: bool = False
) -> Starter:
    """Writes a commented configuration for a data file.

    Args:
        data: A file, folder or glob.
        path: The file to write.
        model: The base model.
        columns: A column mapping: field -> column.
        force: Overwrite the file.

    Raises:
        ConfigError: The file exists, is no .yaml file or is the data, or the format of the rows is not recognized.
        DataError: The data cannot be read.
        StorageError: The file cannot be written.
    """
    _check_out(data, path)
    if path.exists() and not force:
        raise ConfigError(Problem("--out", f"{path} exists", "choose another name, or add --force"))
    facts = look_at(data, columns)
    if not facts.format and not facts.columns:  # nothing could be read
        raise DataError(facts.refusal)
    if not facts.format and not is_mappable(facts.refusal):
        raise DataError(facts.refusal)
    if not facts.format:
        raise ConfigError(
            Problem(
                "DATA",
                f"{facts.refusal.partition(' Fix: ')[0].removesuffix('.')}. Its columns are {_listed(facts.columns)}",
                "say which column is asked and which is answered: --column prompt=COLUMN --column completion=COLUMN",
            )
        )
    columns = facts.labels.settings.get("data.columns", columns) if facts.labels else columns
    length = next((length for length in _LENGTHS if length * _CHARACTERS_PER_TOKEN >= facts.longest), _LENGTHS[-1])
    text = _text(data, path, model, columns, facts, length)
    load_config(yaml.safe_load(text))  # what is written is a configuration
    files.write_text(path, text)
    return Starter(path, facts.rows, facts.format, length, facts.labels.line if facts.labels else "")


def _check_out(data: str, path: Path) -> None:
    """Refuses a target that is the data, also through a link, or that would not be read as a configuration.

    Raises:
        ConfigError: It is one of these.
    """
    other = default_path(data)
    files_of_data = [file.path for file in find_files(data, "DATA") if file.path is not None] if path.exists() else []
    if any(file.exists() and file.samefile(path) for file in files_of_data):
        raise ConfigError(Problem("--out", f"{path} is the data, which would be lost", f"write to {other}"))
    if path.suffix.lower() not in (".yaml", ".yml"):
        raise ConfigError(Problem("--out", f"got {path}; a configuration is a .yaml or .yml file", f"write to {other}"))


def _text(data: str, path: Path, model: str, columns: Mapping[str, str] | None, facts: DataFacts, length: int) -> str:
    own = " (the small one that lamina knows)" if model == Config.model_fields["model"].default else ""
    evaluation = "null   # too few rows to hold some back; better: a file with rows of their own"
    if facts.rows >= _FEW_ROWS:
        evaluation = "0.1    # a tenth of the rows is held back, to see what was learned; or a file"
    epochs = next((number for most, number in _EPOCHS_OF_FEW if facts.rows < most), _EPOCHS)
    few = ", of which there are few" if epochs > _EPOCHS else ""
    mapping = f"  columns: {_flow(columns)}   # field: column\n" if columns else ""
    learned = "  # train_on: assistant   # every answer is learned; completions: only the last one\n"
    loss, overlong = "", "longer conversations are dropped"
    if facts.format in _LOSSES:
        learned, loss = "", f"loss:\n  type: {_LOSSES[facts.format]}\n\n"
    if facts.format == "classification":
        overlong = "longer texts are cut"
    return f"""# Check the data:   lamina data check {path}
# See the rows:     lamina data show {path}
# What it will do:  lamina train {path} --dry-run
# Train:            lamina train {path}
# Every setting:    docs/reference/config.md, or lamina schema

model: {_scalar(model)}   # alias, folder, hub id or .gguf file{own}

data:
  train: {_scalar(data)}   # {facts.rows:,} rows in the format {facts.format}
{mapping}  eval: {evaluation}
  max_length: {length}   # in tokens; {overlong}, and the data report says how many
{learned}
{loss}method:
  type: lora   # others: lamina methods
  r: 16   # more learns more, and takes more memory
  lora_alpha: 32   # usually twice r
  target_modules: all-linear

train:
  num_train_epochs: {epochs}   # passes over the rows{few}; or max_steps
  per_device_train_batch_size: 4   # lower it if memory is short
  gradient_accumulation_steps: 1   # raise it in exchange
  lr_scheduler_type: cosine
  warmup_ratio: 0.05
  # learning_rate: 1.0e-3   # the default depends on the method; lower it if the loss jumps
  # report_to: tensorboard   # or wandb, mlflow, trackio

output_dir: runs/{_scalar(path.stem)}
seed: 0
"""


def default_path(data: str) -> Path:
    """Returns where the configuration for a data file goes: beside nothing, in the working folder."""
    return Path(f"{name_of_run(data)}.yaml")


def _scalar(text: str) -> str:
    return yaml.safe_dump(text, allow_unicode=True, width=10_000).removesuffix("\n").removesuffix("\n...")


def _flow(mapping: Mapping[str, str]) -> str:
    return yaml.safe_dump(dict(mapping), default_flow_style=True, allow_unicode=True, width=10_000).strip()


def _listed(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names)) or "none"
