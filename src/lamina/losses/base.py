"""What a loss is: which rows it takes, how they become sequences, and what training minimizes over them.

A loss's file defines `build(config)`, which gives an instance of a `Loss` subclass; discovery finds it by the file's
name, which is also the name of its configuration in `config/losses/`. Nothing else knows a loss by name: the data is
read by its `sequences`, a step divides its sums by its count over the whole step, and `lamina verify` holds it to its
own `formula`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from transformers import PreTrainedModel

from lamina import plugins
from lamina.config.losses import LossConfig
from lamina.data.batch import Batch
from lamina.data.example import EncodedExample
from lamina.data.sequences import ANSWERS, Sequences
from lamina.structure.head import Head


@dataclass(frozen=True)
class Metric:
    """A figure that a loss has beside itself, as a sum that goes on over micro-batches.

    Attributes:
        total: Scalar, float32 or float64.
        count: What the sum is divided by in the end.
    """

    total: torch.Tensor
    count: float


@dataclass(frozen=True)
class LossSum:
    """A loss over some examples.

    Attributes:
        total: float32 scalar with a gradient: the sum over the examples, not yet divided by `Loss.count`.
        metrics: Figures beside it by name, such as TRL's `rewards/margins`; without gradients.
    """

    total: torch.Tensor
    metrics: Mapping[str, Metric] = field(default_factory=dict)


class Loss(ABC):
    """One loss.

    Attributes:
        sequences: What it makes of rows; cross entropy's unless a subclass says otherwise.
        is_likelihood: Whether it is a mean of -log p, so that exp(loss) is a perplexity.
    """

    sequences: ClassVar[Sequences] = ANSWERS
    is_likelihood: ClassVar[bool] = False

    def count(self, examples: Sequence[EncodedExample]) -> float:
        """What the sum over examples is divided by: their supervised tokens, unless a subclass says otherwise.

        A step asks for that of all its examples, so that micro-batches, packing and processes change nothing.
        """
        return float(sum(example.supervised_tokens for example in examples))

    @abstractmethod
    def compute(self, model: PreTrainedModel, head: Head, batches: Sequence[Batch]) -> LossSum:
        """Computes the loss of whole examples.

        Args:
            model: Inside `fusion.fast_path`, or in the attention that the batches' layout names.
            head: The model's parts.
            batches: On the model's device, from `build_units`: one with the documents of many examples, or one for each
                sequence of a single example. `batch.examples` says what the documents are of.
        """

    @abstractmethod
    def formula(self, logits: Sequence[torch.Tensor], example: EncodedExample) -> torch.Tensor:
        """The same for one example from the model's own logits, in plain torch, as its paper writes it.

        Args:
            logits: Of each of its sequences, (T, vocabulary), with a gradient.
            example: The example.

        Returns:
            A scalar in the dtype of the logits.
        """


def build_loss(config: LossConfig) -> Loss:
    """The loss that the `loss:` section names.

    Raises:
        ConfigError: It is of another package, which cannot be imported.
    """
    return plugins.load_member("losses", config.type).build(config)
