"""`Loss`, the interface of a loss: which rows it takes, how they become sequences, and what training minimizes.

A loss's file defines `build(config)`, which returns an instance of a `Loss` subclass. It is discovered by the file's
name, which is also the name of its configuration in `config/losses/`. No other code knows a loss by name: its
`sequences` decide how rows are read, a step divides the sum by the loss's `count` over the whole step, and `lamina
verify` compares it with its own `formula`.

Losses over answers build on `answers.py` (log-probabilities of answers), those over pairs also on `pairs.py`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from transformers import PreTrainedModel

from lamina import plugins
from lamina.config.losses import LossConfig
from lamina.data.batch import Batch, Layout
from lamina.data.example import EncodedExample
from lamina.data.sequences import ANSWERS, Sequences
from lamina.data.side import Side
from lamina.distributed.world import World
from lamina.methods.shared.base import Injection
from lamina.models.load import Base
from lamina.progress import Notify
from lamina.structure.head import Head


@dataclass(frozen=True)
class Metric:
    """A metric that a loss reports, as a sum that is accumulated over micro-batches.

    Attributes:
        total: The sum, a float32 or float64 scalar.
        count: What the sum is divided by in the end.
    """

    total: torch.Tensor
    count: float


@dataclass(frozen=True)
class LossSum:
    """The loss over some examples.

    Attributes:
        total: The sum over the examples, not divided by `Loss.count`: a float32 scalar with a gradient.
        metrics: Metrics by name, such as TRL's `rewards/margins`; without gradients.
    """

    total: torch.Tensor
    metrics: Mapping[str, Metric] = field(default_factory=dict)


class Loss(ABC):
    """One loss.

    Attributes:
        sequences: How rows become sequences; by default as for cross entropy.
        trains_score: Whether it trains a head on hidden states, the `score` that is saved with the adapter.
        is_likelihood: Whether the loss is a mean of -log p, so that exp(loss) is a perplexity.
        is_per_token: Whether it is a sum over supervised tokens that reads nothing but the logits of each, so that
            processes may divide a document (`distributed.sp_size`).
        needs_reference: Whether it reads a reference model's log-probabilities of the answers. Its examples then have
            the values `reference/0`, `reference/1`, ... (one for each sequence), and `reference/companion/0`, ... of
            their companions.
    """

    sequences: Sequences = ANSWERS
    trains_score: ClassVar[bool] = False
    is_likelihood: ClassVar[bool] = False
    is_per_token: ClassVar[bool] = False
    needs_reference: bool = False

    def count(self, examples: Sequence[EncodedExample]) -> float:
        """Computes what the sum over examples is divided by: their supervised tokens, unless a subclass overrides this.

        A step divides by the count of all its examples, so micro-batches, packing and processes change nothing.
        """
        return float(sum(example.supervised_tokens for example in examples))

    @abstractmethod
    def compute(self, model: PreTrainedModel, head: Head, batches: Sequence[Batch]) -> LossSum:
        """Computes the loss of whole examples.

        Args:
            model: The model, inside `fusion.fast_path` or with the attention that the batches' layout names.
            head: Decoder and output head of the model.
            batches: From `build_units`, on the model's device: one with the documents of many examples, or one for each
                sequence of a single example. `batch.examples` says which documents belong to which example.
        """

    @abstractmethod
    def formula(self, logits: Sequence[torch.Tensor], example: EncodedExample) -> torch.Tensor:
        """Computes the sum for one example from the model's own logits, in plain torch, as in the paper.

        Args:
            logits: `outputs` of each of its sequences, by default logits (T, vocabulary), with a gradient.
            example: The example.

        Returns:
            A scalar in the dtype of the logits.
        """

    def standing(self, loss: float, metrics: Mapping[str, float]) -> float:
        """Returns what the best evaluation has least of, and whose share of change says how much was learned; by
        default the loss itself.

        A loss whose weights follow the model may fall while the model gets worse, and then compares something else.

        Args:
            loss: Of the evaluation.
            metrics: This loss's own, of the evaluation.
        """
        return loss

    def outputs(self, model: PreTrainedModel, ids: torch.Tensor) -> torch.Tensor:
        """Computes what `formula` takes, by the model's own code: logits (T, vocabulary) of token ids (1, T)."""
        return model(input_ids=ids, use_cache=False).logits[0]

    def study(self, train: Side, rows_per_step: float, notify: Notify) -> None:
        """Looks at the training rows once, before anything else: checks them, and takes settings from them.

        Args:
            train: The training rows.
            rows_per_step: Examples in an optimizer step, on average.
            notify: Told what a user should know of them.

        Raises:
            DataError: The loss cannot learn from them.
        """
        return

    def arrange(self, side: Side, sets: Sequence[slice], seed: int) -> Side:
        """Returns a side's examples with what else the loss needs of a set as a whole, such as companions.

        Args:
            side: The examples.
            sets: The sets that it consists of, each evaluated by itself; empty if it is one.
            seed: Seed of what is drawn.
        """
        return side

    def attach(self, injection: Injection, base: Base, seed: int, notify: Notify) -> Injection:
        """Adds modules that the loss trains beside the adapter, and keeps what it needs of the model.

        Args:
            injection: The adapter.
            base: The model that it is on.
            seed: Seed of the modules' initial weights.
            notify: Told before anything that takes a while.

        Raises:
            ConfigError: The loss cannot train this model.
        """
        return injection

    def over_step(
        self,
        model: PreTrainedModel,
        head: Head,
        micro_batches: Sequence[Sequence[EncodedExample]],
        layout: Layout,
        world: World,
        ran: Callable[[int], object] = lambda examples: None,
    ) -> Sequence[Sequence[EncodedExample]]:
        """Returns a step's micro-batches with the values that depend on the step as a whole; without gradients.

        Args:
            model: As for `compute`.
            head: The model's parts.
            micro_batches: The examples of each micro-batch, in all processes together.
            layout: How the documents of a micro-batch go through the model.
            world: The processes that take the step together.
            ran: Called whenever a micro-batch has gone through the model, with its number of examples.
        """
        return micro_batches

    def remarks(self, first: Mapping[str, float], now: Mapping[str, float]) -> list[str]:
        """Returns what a user should know of an evaluation's metrics, beside those of the first one."""
        return []

    def figures(self) -> dict[str, Any]:
        """Returns the loss's entries for the run's summary, as JSON values."""
        return {}

    def facts(self) -> dict[str, str]:
        """Returns digests of what the loss reads beside the data, by a name for people, after `attach`.

        A run only goes on, and is only evaluated, with the same.
        """
        return {}

    def recall(self, figures: Mapping[str, Any]) -> None:
        """Takes settings that training took from its rows from the run's `figures`, to evaluate the run."""
        return


def means(sums: Mapping[str, tuple[float, float]]) -> dict[str, float]:
    """Returns metrics from their sums and counts; those without a count are left out.

    A loss whose chosen and rejected answers do not belong together has no margins to add up: there, the margin is the
    difference between the means.
    """
    found = {name: total / count for name, (total, count) in sums.items() if count}
    if "rewards/margins" not in sums and {"rewards/chosen", "rewards/rejected"} <= found.keys():
        found["rewards/margins"] = found["rewards/chosen"] - found["rewards/rejected"]
    return found


def build_loss(config: LossConfig) -> Loss:
    """Builds the loss that the `loss:` section names.

    Raises:
        ConfigError: The loss belongs to another package, which cannot be imported.
    """
    return plugins.load_member("losses", config.type).build(config)
