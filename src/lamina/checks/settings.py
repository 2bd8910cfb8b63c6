"""What the checks need to know about the run that the data is for."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lamina.data.example import Example, Kind

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class CheckSettings:
    """The settings of the run that the checks depend on.

    Attributes:
        max_length: Maximum length of an example in tokens.
        overlong: What to do with a longer example: `drop`, `cut`, `split`, or `auto` (split plain text, drop the rest).
        tokenizer: The model's tokenizer; None skips every check of tokens.
        batch_size: `per_device_train_batch_size`.
        packing: Whether micro-batches are filled by token count.
        wrapped: Whether packing cuts rows wherever a micro-batch is full.
        seed: Seed of packing.
        progress: Called with the number of rows checked so far, periodically and at the end.
        kinds: Kinds of rows that the run's loss supports; None if the data is not for a particular run.
        has_eval: Whether evaluation rows follow the training rows; if not, prompts are not compared.
        embedding_rows: Rows of the base model's embedding; None skips the check of token ids.
        max_dropped: Largest share of a source's rows that may be dropped.
        examples: Maximum number of example rows per finding.
        positions: The base model's positions, beyond which `max_length` cannot be raised; None if unknown.
    """

    max_length: int
    overlong: str
    tokenizer: PreTrainedTokenizerBase | None
    batch_size: int
    packing: bool
    seed: int
    progress: Callable[[int], None]
    kinds: Collection[Kind] | None = None
    has_eval: bool = True
    wrapped: bool = False
    embedding_rows: int | None = None
    max_dropped: float = 0.5
    examples: int = 20
    positions: int | None = None

    def fate(self, example: Example | None) -> str:
        """Returns what happens to an overlong row: `drop`, `cut` or `split`."""
        if self.overlong != "auto":
            return self.overlong
        kind = None if example is None else example.kind
        return "cut" if kind is Kind.CLASSIFICATION else "split" if kind is Kind.TEXT else "drop"
