"""Adds tokens to a base's tokenizer, and rows for them to its embedding and head.

The rows are initialized as by transformers' `resize_token_embeddings`: drawn around the mean of the base's own rows,
from a fixed seed, so that every process and every later run has the same base. The base on disk is unchanged, and so is
its digest; what was added is recorded in the adapter's lock.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lamina.config.data import DataConfig
from lamina.errors import AdapterError, ConfigError, Problem
from lamina.machine.quiet import quiet_transformers
from lamina.machine.seeding import seeded

ORDINARY, SPECIAL = "data.add_tokens", "data.special_tokens"

# The seed of the new rows' initial values; part of what a recorded vocabulary means.
_SEED = 0


@dataclass(frozen=True)
class NewTokens:
    """Tokens to add to a tokenizer.

    Attributes:
        ordinary: Tokens that are text, and are decoded as text.
        special: Special tokens, which are left out where special tokens are.
    """

    ordinary: tuple[str, ...] = ()
    special: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.ordinary or self.special)

    @classmethod
    def of(cls, data: DataConfig) -> NewTokens:
        """Returns the tokens that a `data:` section asks for."""
        return cls(tuple(data.add_tokens), tuple(data.special_tokens))

    def as_json(self) -> dict[str, list[str]]:
        """Converts to plain data."""
        return {"ordinary": list(self.ordinary), "special": list(self.special)}

    @classmethod
    def from_json(cls, value: Mapping[str, Sequence[str]] | None) -> NewTokens:
        """Reads what `as_json` returned; None stands for none.

        Raises:
            AdapterError: It is something else.
        """
        try:
            return cls() if value is None else cls(tuple(value["ordinary"]), tuple(value["special"]))
        except (KeyError, TypeError) as error:
            raise AdapterError(f"lamina.json: its added tokens are not readable ({error}).") from None


@dataclass(frozen=True)
class AddedTokens:
    """What adding tokens to a base has changed.

    Attributes:
        tokens: The tokens that were asked for.
        ids: Ids whose rows the base did not train: of tokens that it did not have, and of rows that it did not have.
        known: Tokens that the tokenizer had before.
        rows_before: Rows of the embedding before.
        rows: Rows of the embedding now.
    """

    tokens: NewTokens
    ids: tuple[int, ...]
    known: tuple[str, ...]
    rows_before: int
    rows: int

    def notes(self) -> list[str]:
        """Returns sentences for the user."""
        notes = []
        if self.known:
            notes.append(
                f"The tokenizer already has {', '.join(map(repr, self.known))}, so nothing is added for it; its row is "
                "trained only if method.trainable_token_indices names it."
            )
        if self.ids:
            how = f"{self.rows_before} to {self.rows} rows" if self.rows > self.rows_before else "rows that it has"
            notes.append(
                f"Added {len(self.ids)} tokens (ids {self.ids[0]} to {self.ids[-1]}; the embedding has {how}), whose "
                "rows start near the mean of the others."
            )
        return notes


def add_to_tokenizer(tokenizer: PreTrainedTokenizerBase, tokens: NewTokens) -> tuple[str, ...]:
    """Adds tokens to a tokenizer.

    Returns:
        Those that it had before.

    Raises:
        ConfigError: It cannot take one of them.
    """
    before = tokenizer.get_vocab()
    tokenizer.add_tokens(list(tokens.ordinary))
    tokenizer.add_tokens(list(tokens.special), special_tokens=True)
    after = tokenizer.get_vocab()
    for field, names in ((ORDINARY, tokens.ordinary), (SPECIAL, tokens.special)):
        for name in names:
            if name not in after:
                message = f"the tokenizer does not take {name!r} as a token."
                raise ConfigError(Problem(field, message, "write it without spaces at its ends"))
    return tuple(name for name in (*tokens.ordinary, *tokens.special) if name in before)


def missing_tokens(own: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase) -> NewTokens:
    """Returns the tokens that another tokenizer has in addition to a base's own, if adding them gives the same ids.

    They are one list in the order of their ids, all ordinary or all special; none where that gives other ids.
    """
    before, after = own.get_vocab(), other.get_vocab()
    added = sorted(after.keys() - before.keys(), key=after.__getitem__)
    first = max(before.values(), default=-1) + 1
    if not added or [after[name] for name in added] != list(range(first, first + len(added))):
        return NewTokens()
    if any(after.get(name) != token for name, token in before.items()):
        return NewTokens()
    special = set(other.all_special_tokens) | {
        each.content for each in other.added_tokens_decoder.values() if each.special
    }
    count = sum(name not in special for name in added)
    if any(name in special for name in added[:count]):  # the two kinds are mixed, so that ids would change
        return NewTokens(special=tuple(added))
    return NewTokens(tuple(added[:count]), tuple(added[count:]))


def add_rows(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tokens: NewTokens, known: Sequence[str]
) -> AddedTokens:
    """Gives a model rows for all tokens of a tokenizer, where it has fewer.

    Args:
        model: A base without an adapter.
        tokenizer: Its tokenizer, with the tokens.
        tokens: The tokens.
        known: The result of `add_to_tokenizer`.

    Raises:
        ConfigError: The model's embedding or head cannot be resized.
    """
    embedding: Any = model.get_input_embeddings()
    before = int(embedding.weight.shape[0])
    vocabulary = tokenizer.get_vocab()
    new = {vocabulary[name] for name in (*tokens.ordinary, *tokens.special) if name not in known}
    rows = max(before, max(vocabulary.values()) + 1)
    if rows > before:
        _resize(model, rows)
    return AddedTokens(tokens, tuple(sorted(new | set(range(before, rows)))), tuple(known), before, rows)


def _resize(model: PreTrainedModel, rows: int) -> None:
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    for end in (embedding, head):
        if end is not None and not isinstance(end, nn.Embedding | nn.Linear):
            message = f"needs rows in {type(end).__name__}, which stores its weight packed."
            raise ConfigError(Problem(ORDINARY, message, "leave embedding and head unquantized"))
    try:
        with seeded(_SEED, model.device), quiet_transformers():
            model.resize_token_embeddings(rows, mean_resizing=True)
    except (NotImplementedError, TypeError, ValueError, AttributeError) as error:
        message = f"transformers cannot resize the embedding of {type(model).__name__} ({error})."
        raise ConfigError(Problem(ORDINARY, message, "use another model, or tokens that it has")) from error
