"""What `lamina data` is pointed at: a data file with a few options, or the configuration of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lamina.config import DataConfig, load_config
from lamina.data.template import ChatTemplate, build_template
from lamina.errors import ConfigError, Problem
from lamina.models.load import load_tokenizer
from lamina.models.source import ALIASES, Notify, find_model, packaged_gguf

# Of the model whose tokens are counted where a data file alone is given, and of its micro-batches.
DEFAULT_MODEL = "smollm2-135m"
DEFAULT_BATCH_SIZE = 4
_NO_MODEL = "none"


@dataclass(frozen=True)
class Target:
    """Data with the run that it is for.

    Attributes:
        data: The `data:` section.
        model: The base, as the user names it; None if tokens are not looked at.
        batch_size: `per_device_train_batch_size`.
        seed: Of the run.
    """

    data: DataConfig
    model: str | None
    batch_size: int = DEFAULT_BATCH_SIZE
    seed: int = 0

    def template(self, notify: Notify) -> ChatTemplate | None:
        """The model's chat template with its tokenizer; None without a model.

        Raises:
            LaminaError: The model or the template cannot be used.
        """
        if self.model is None:
            return None
        tokenizer = load_tokenizer(find_model(self.model, notify))
        return build_template(tokenizer, self.data.chat_template, self.data.thinking)


def find_target(
    named: str,
    overrides: Sequence[str] = (),
    *,
    model: str | None = None,
    columns: Mapping[str, str] | None = None,
    evaluation: str | None = None,
) -> Target:
    """The data that a user names.

    Args:
        named: A YAML file with a run's configuration; or a data file, a folder, a glob or a data set of the hub.
        overrides: KEY=VALUE, as for `lamina train`.
        model: Another base than the configuration's; `none` leaves tokens out.
        columns: `data.columns`.
        evaluation: `data.eval`, a file.

    Raises:
        ConfigError: The configuration is wrong.
    """
    changes: dict[str, Any] = {}
    if columns:
        changes["columns"] = dict(columns)
    if evaluation is not None:
        changes["eval"] = evaluation
    if Path(named).suffix in (".yaml", ".yml"):
        config = load_config(named, [*overrides])
        data = config.data.model_copy(update=changes)
        chosen = config.model if model is None else model
        batch_size, seed = config.train.per_device_train_batch_size, config.seed
    else:
        values = {"data": {"train": named, "eval": None, **changes}}
        config = load_config(values, [*overrides])
        data, batch_size, seed = config.data, DEFAULT_BATCH_SIZE, config.seed
        chosen = model or (DEFAULT_MODEL if packaged_gguf(ALIASES[DEFAULT_MODEL][0]) else _NO_MODEL)
    if chosen == _NO_MODEL and data.chat_template is not None:
        raise ConfigError(Problem("--model", "is none, so data.chat_template does nothing", "name a model"))
    return Target(data, None if chosen == _NO_MODEL else chosen, batch_size, seed)
