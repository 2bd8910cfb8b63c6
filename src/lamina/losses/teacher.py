"""`Teacher`: a model whose distributions over the answers' tokens a loss compares the trained model's with.

It is another model, or the trained model's own base with the adapter off, which takes no memory of its own.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel

from lamina.compute.ops.divergence import chunked_divergence, chunked_divergence_autograd
from lamina.data.batch import Layout, build_batch
from lamina.data.example import EncodedExample
from lamina.losses.answers import has_plain_head, predictors
from lamina.methods.shared.base import Injection
from lamina.structure.head import Head

# How another model runs: its own code, one document at a time.
_ALONE = Layout(together=False, own_attention=True)


@dataclass(frozen=True)
class Teacher:
    """The teacher.

    Attributes:
        model: Its model: another one, or the student's own.
        head: Its parts.
        injection: The adapter that is off while it teaches; None for another model.
    """

    model: PreTrainedModel
    head: Head
    injection: Injection | None

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """Makes the model the teacher inside the block, in evaluation mode and without gradients."""
        training = self.model.training
        self.model.eval()
        try:
            with torch.no_grad(), self.injection.disabled() if self.injection else contextlib.nullcontext():
                yield
        finally:
            self.model.train(training)

    def predictors(self, examples: Sequence[EncodedExample], layout: Layout, device: torch.device) -> torch.Tensor:
        """Computes what predicts the supervised tokens of some documents, for `logits`, without gradients.

        Args:
            examples: Of one document each.
            layout: How documents go through the student's model; the teacher's takes it if it is the same model.
            device: Where the student is.

        Returns:
            (N, width): hidden states, or logits if its head does not give them (`Head.whole_model`).
        """
        layout = layout if self.injection else _ALONE
        groups = [examples] if layout.shared else [[example] for example in examples]
        batches = [build_batch(group, layout).to(device) for group in groups]
        with self.active():
            return torch.cat([predictors(self.model, self.head, batch) for batch in batches])

    def logits(self, predictors: torch.Tensor) -> torch.Tensor:
        """Computes its logits (C, V) from some of its `predictors`."""
        if self.head.whole_model:
            return predictors
        with self.active():
            return self.head.transform(self.head.linear(predictors))

    def own_logits(self, example: EncodedExample, device: torch.device) -> torch.Tensor:
        """Computes the logits (T, V) of one document by the model's own code."""
        ids = torch.from_numpy(example.input_ids).long().to(device)[None]
        with self.active():
            return self.model(input_ids=ids, use_cache=False).logits[0]

    def divergences(
        self,
        student: torch.Tensor,
        taught: torch.Tensor,
        model: PreTrainedModel,
        head: Head,
        beta: float,
        temperature: float,
    ) -> torch.Tensor:
        """Computes the divergence of a student's distributions from the teacher's in chunks: (N,), float32.

        Args:
            student: The student's predictors (see `answers.predictors`), (N, its width).
            taught: The teacher's `predictors` of the same tokens.
            model: The student's model.
            head: Its parts.
            beta: Which divergence; see `compute/ops/divergence.py`.
            temperature: What logits are divided by.
        """
        if head.whole_model:
            width = student.shape[1]
            return chunked_divergence_autograd(student, taught, _same, self.logits, beta, temperature, width)
        if has_plain_head(head):
            assert isinstance(head.linear, nn.Linear)
            return chunked_divergence(student, taught, head.linear, head.transform, self.logits, beta, temperature)
        logits_of = lambda hidden_CD: head.transform(head.linear(hidden_CD))  # noqa: E731
        vocabulary = model.config.get_text_config().vocab_size
        return chunked_divergence_autograd(student, taught, logits_of, self.logits, beta, temperature, vocabulary)


def _same(logits: torch.Tensor) -> torch.Tensor:
    return logits
