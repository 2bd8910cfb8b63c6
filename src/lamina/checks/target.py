"""The target of `lamina data`: a data file with a few options, or the configuration of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lamina.chat.template import ChatTemplate, template_of
from lamina.config import DataConfig, load_config
from lamina.config.aliases import ALIASES
from lamina.config.losses import LossConfig
from lamina.config.losses.cross_entropy import CrossEntropyConfig
from lamina.config.named import names_data
from lamina.data.labels import read_labels
from lamina.data.length import check_length, longest_default
from lamina.errors import ConfigError, Problem
from lamina.models.load import load_tokenizer
from lamina.models.new_tokens import NewTokens, add_to_tokenizer
from lamina.models.source import find_model, packaged_gguf
from lamina.models.vocabulary import declared_rows, highest_id, positions_in
from lamina.progress import Notify

# Model whose tokens are counted if only a data file is given, and the batch size.
DEFAULT_MODEL = "smollm2-135m"
DEFAULT_BATCH_SIZE = 4
_NO_MODEL = "none"


@dataclass(frozen=True)
class Target:
    """Data, with the run that it is for.

    Attributes:
        data: The `data:` section.
        model: The base model, as the user names it; None skips tokens.
        batch_size: `per_device_train_batch_size`.
        seed: Seed of the run.
        is_run: Whether a run's configuration specifies the data, so that anything that stops the run is an error.
        loss: What the run minimizes.
    """

    data: DataConfig
    model: str | None
    batch_size: int = DEFAULT_BATCH_SIZE
    seed: int = 0
    is_run: bool = False
    loss: LossConfig = field(default_factory=CrossEntropyConfig)

    def template(self, notify: Notify) -> ChatTemplate | None:
        """Returns the model's chat template with its tokenizer; None without a model.

        Raises:
            LaminaError: The model or the template cannot be used.
        """
        if self.model is None:
            return None
        tokenizer = load_tokenizer(find_model(self.model, notify))
        add_to_tokenizer(tokenizer, NewTokens.of(self.data))
        return template_of(tokenizer, self.data)

    def embedding_rows(self, notify: Notify, template: ChatTemplate | None) -> int | None:
        """Returns the number of rows of the model's embedding; None without a model, or if its config does not say."""
        if self.model is None or template is None:
            return None
        rows = declared_rows(find_model(self.model, notify).folder, template.tokenizer)
        adds = bool(NewTokens.of(self.data))
        return max(rows, highest_id(template.tokenizer) + 1) if rows is not None and adds else rows

    def max_length(self, notify: Notify) -> int:
        """Returns the longest row that training takes whole: `data.max_length`, or what its default can be raised to.

        Raises:
            ConfigError: It is given, and more than the model's positions.
        """
        positions = self.positions(notify)
        check_length(self.data, positions)
        return longest_default(self.data, positions)

    def positions(self, notify: Notify) -> int | None:
        """Returns the model's positions; None without a model, or if its config does not say."""
        return None if self.model is None else positions_in(find_model(self.model, notify).folder)


def find_target(
    named: str,
    overrides: Sequence[str] = (),
    *,
    model: str | None = None,
    columns: Mapping[str, str] | None = None,
    evaluation: str | None = None,
    notify: Notify = lambda message: None,
) -> Target:
    """Returns the data that a user names. Texts with labels in a data file alone are read as `lamina train` reads them.

    Args:
        named: A YAML file with a run's configuration; or a data file, a folder, a glob or a data set on the hub.
        overrides: KEY=VALUE, as for `lamina train`.
        model: A base model to use instead of the configuration's; `none` skips tokens.
        columns: `data.columns`.
        evaluation: `data.eval`, a file.
        notify: Called with a sentence on how labels are read.

    Raises:
        ConfigError: The configuration is invalid.
    """
    is_run = Path(named).suffix in (".yaml", ".yml")
    given = {override.partition("=")[0].strip() for override in overrides}
    if "data.train" in given and not is_run:
        raise ConfigError(Problem("data.train", f"is given in addition to the file {named}", "give the data once"))
    config = load_config(named if is_run else {"data": {"train": named, "eval": None}}, overrides)
    changes = {"columns": dict(columns) if columns else None, "eval": evaluation}
    changes = {name: value for name, value in changes.items() if value is not None}
    if changes:
        values = config.model_dump(mode="json")
        values["data"] |= changes
        config = load_config(values)
    alone = {"data": {"train": named, "eval": None, **changes}}
    reading = read_labels(load_config(alone, overrides)) if names_data(named) else None
    if reading is not None:
        notify(reading.line)
        config = load_config(reading.put_into(alone), overrides)
    chosen = model
    if chosen is None and (is_run or "model" in given):
        chosen = config.model
    if chosen is None:
        chosen = DEFAULT_MODEL if packaged_gguf(ALIASES[DEFAULT_MODEL].package) else _NO_MODEL
    data = config.data
    if config.loss.whole_rows:  # whatever train_on says, their last answers alone are in the loss
        data = data.model_copy(update={"train_on": "completions"})
    for name in ("chat_template", "chat_template_kwargs", "enable_thinking"):
        if chosen == _NO_MODEL and getattr(data, name) is not None:
            raise ConfigError(Problem("--model", f"is none, so data.{name} has no effect", "name a model"))
    batch_size = config.train.per_device_train_batch_size
    return Target(data, None if chosen == _NO_MODEL else chosen, batch_size, config.seed, is_run, config.loss)
