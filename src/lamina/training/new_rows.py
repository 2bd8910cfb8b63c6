"""Which tokens a run adds to its base, and that their rows are trained: a row that nobody trains would stay noise."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from lamina.adapters.adapter import Adapter
from lamina.config import Config
from lamina.config.methods.full import FullConfig
from lamina.config.methods.lora import LoraConfig
from lamina.config.methods.peft import PeftConfig
from lamina.errors import ConfigError, Problem
from lamina.methods.shared.lora_embedding import tied_ends
from lamina.models.load import Base
from lamina.models.new_tokens import ORDINARY, SPECIAL, NewTokens


def tokens_of(config: Config, start: Adapter | None) -> NewTokens:
    """Returns the tokens that a run adds to its base: those of `data`, or of the adapter that it starts from.

    Raises:
        ConfigError: The adapter was trained with others.
    """
    asked = NewTokens.of(config.data)
    if start is None:
        return asked
    had = NewTokens.from_json(start.lock.added_tokens if start.lock else None)
    if asked and asked != had:
        message = f"{start.path}, which training starts from, was trained with other tokens ({had.as_json()})."
        fix = "leave it out, or merge that adapter (lamina merge) and start a new one on the result"
        raise ConfigError(Problem(ORDINARY if asked.ordinary != had.ordinary else SPECIAL, message, fix))
    return had


def train_new_rows(config: Config, base: Base) -> Config:
    """Completes a run's method so that it trains the rows of tokens that were added to the base.

    Raises:
        ConfigError: The method cannot train them.
    """
    if base.added is None or not base.added.ids or isinstance(config.method, FullConfig):
        return config
    method = config.method
    field = ORDINARY if config.data.add_tokens else SPECIAL
    if isinstance(method, PeftConfig):
        if method.fields.get("trainable_token_indices") or method.fields.get("token_indices"):
            return config
        if not method.fields.get("modules_to_save"):
            message = f"adds tokens, and with these settings {method.peft_type} would leave their rows untrained."
            fix = f"set method.trainable_token_indices or method.token_indices to {list(base.added.ids)}"
            raise ConfigError(Problem(field, message, fix))
        return config
    if not isinstance(method, LoraConfig):
        message = f"adds tokens, and method '{method.type}' would leave their rows untrained."
        raise ConfigError(Problem(field, message, "use lora, dora or full"))
    indices = _indices(method, base, base.added.ids)
    if indices is None:
        return config
    return config.model_copy(update={"method": method.model_copy(update={"trainable_token_indices": indices})})


def _indices(method: LoraConfig, base: Base, new: Sequence[int]) -> list[int] | dict[str, list[int]] | None:
    """The rows to train: those that are asked for and the new ones, of both ends; None where both are trained whole."""
    model, tie = base.model, tied_ends(base.model)
    names = {module: name for name, module in model.named_modules()}
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    ends = [names[end] for end in (embedding, head) if end is not None]
    whole = (
        [name for name in ends if name.endswith(tuple(method.modules_to_save or ()))] if method.modules_to_save else []
    )
    if tie is not None and method.ensure_weight_tying and whole:
        whole = ends
    if len(whole) == len(ends):
        return None
    if whole and tie is not None:
        message = f"trains {whole[0]} whole, but the new tokens' rows of {', '.join(set(ends) - set(whole))} not."
        raise ConfigError(Problem("method.modules_to_save", message, "set method.ensure_weight_tying to true"))
    low_rank = [name for name in ends if _is_target(method.target_modules, name)]
    if low_rank:
        message = f"selects {low_rank[0]}, whose rows of new tokens have to be trained and saved whole."
        fix = (
            f"leave it out, or name {' and '.join(name.rpartition('.')[2] for name in ends)} in modules_to_save instead"
        )
        raise ConfigError(Problem("method.target_modules", message, fix))
    given: Any = method.trainable_token_indices
    if tie is not None and not isinstance(given, dict):
        return _both(given, new)
    asked = given if isinstance(given, dict) else {ends[0]: given}
    of_ends = {name: _asked(asked, name) for name in ends if name not in whole}
    if tie is not None and tie.head in of_ends and of_ends[tie.head] is None:
        of_ends[tie.head] = of_ends[tie.embedding]
    return {name.rpartition(".")[2]: _both(ids, new) for name, ids in of_ends.items()}


def _asked(given: dict[str, list[int]], name: str) -> list[int] | None:
    return next((ids for end, ids in given.items() if f".{name}".endswith(f".{end}")), None)


def _both(given: Sequence[int] | None, new: Sequence[int]) -> list[int]:
    return [*(given or ()), *(token for token in new if token not in (given or ()))]


def _is_target(target_modules: str | list[str], name: str) -> bool:
    if isinstance(target_modules, list):
        return any(f".{name}".endswith(f".{end}") for end in target_modules)
    return target_modules != "all-linear" and re.fullmatch(target_modules, name) is not None
