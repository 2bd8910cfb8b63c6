"""`data.max_length` if it is not given: it follows the model's positions and the lengths of the rows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lamina.config import DataConfig
from lamina.data.encoded_file import EncodedFile
from lamina.errors import ConfigError, Problem

# The default is raised for longer rows up to this, in steps of `_STEP`, unless a share below `_FEW` of them is longer.
MOST = 4096
_STEP = 64
_FEW = 0.01


def is_length_given(config: DataConfig) -> bool:
    """Returns whether the user set `data.max_length`."""
    return "max_length" in config.model_fields_set


def check_length(config: DataConfig, positions: int | None) -> None:
    """Checks that `data.max_length`, if given, is within the model's positions.

    Raises:
        ConfigError: It is not.
    """
    if positions is not None and is_length_given(config) and config.max_length > positions:
        message = f"{config.max_length} is more than the model's {positions} positions (max_position_embeddings)"
        raise ConfigError(
            Problem("data.max_length", message, f"use {positions} at most, or remove it to follow model and data")
        )


def longest_default(config: DataConfig, positions: int | None) -> int:
    """Returns the largest value that `max_length` can have: the given one, or what the default can be raised to."""
    return config.max_length if is_length_given(config) else min(MOST, positions or MOST)


def with_length(config: DataConfig, files: Sequence[EncodedFile], positions: int | None) -> DataConfig:
    """Returns the settings with the `max_length` to use.

    If it is not given, it has room for 99 in 100 of the rows that must stay whole, if that is more than the default,
    and it is never more than the model's positions.

    Args:
        config: The `data:` section.
        files: The encoded files.
        positions: The model's positions; None if unknown.

    Raises:
        ConfigError: It is given, and more than the model's positions.
    """
    check_length(config, positions)
    if is_length_given(config):
        return config
    length = config.max_length
    whole = [file.store.longest for file in files if not (file.is_text and config.overlong == "auto")]
    lengths = np.concatenate(whole) if whole else np.zeros(0, dtype=np.int64)
    if len(lengths) and (lengths > length).mean() > _FEW:
        needed = int(np.quantile(lengths, 1 - _FEW, method="higher"))
        length = min(MOST, -(-needed // _STEP) * _STEP)
    length = min(length, positions or length)
    return config if length == config.max_length else config.model_copy(update={"max_length": length})


def length_notes(before: DataConfig, after: DataConfig, positions: int | None) -> list[str]:
    """Returns a message to the user if the default of `max_length` was changed."""
    if before.max_length == after.max_length:
        return []
    why = "which the model has" if after.max_length == positions else "so that the rows fit"
    return [f"data.max_length is {after.max_length} instead of the default {before.max_length}, {why}"]
