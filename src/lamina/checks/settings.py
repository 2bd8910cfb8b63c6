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
    """The run, as far as the checks depend on it.

    Attributes:
        max_length: Longest example in tokens.
        overlong: What becomes of a longer one: `drop`, `cut`, `split`, or `auto` (text is split, the rest dropped).
        tokenizer: Of the model; None leaves out every check of tokens.
        batch_size: `per_device_train_batch_size`.
        packing: Whether micro-batches are filled by tokens.
        wrapped: Whether packing cuts rows wherever a micro-batch is full.
        seed: Decides what packing does.
        progress: Called with the number of rows seen so far, now and then and at the end.
        kinds: What the run has a loss for; None where the data is for no run in particular.
        has_eval: Whether eval rows follow the train rows; without any, prompts are not compared.
        embedding_rows: Of the base; None leaves out the check of token ids against them.
        max_dropped: Largest share of a source's rows that may be left out.
        examples: Most offending rows that a finding shows.
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

    def fate(self, example: Example | None) -> str:
        """What becomes of a row that is too long: `drop`, `cut` or `split`."""
        if self.overlong != "auto":
            return self.overlong
        return "split" if example is not None and example.kind is Kind.TEXT else "drop"
