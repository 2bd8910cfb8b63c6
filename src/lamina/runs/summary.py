"""The figures of a finished run: what its manifest keeps, and `lamina train --json` prints."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lamina.runs.flat import from_json, the_rest, to_json


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What came of a run.

    Attributes:
        run: Its directory.
        adapter: The adapter's folder.
        adapter_digest: Over the adapter's settings and tensors.
        adapter_step: The step that the adapter is of.
        steps: Optimizer steps taken.
        skipped_steps: Those whose gradient was not finite, and that changed nothing.
        tokens: Real tokens trained on.
        supervised_tokens: Those among them that are in the loss.
        loss_type: The loss's name; None in runs of the first version.
        reference: Digest of what the loss compares with: of the base's weights, or of the adapter that training started
            from; None without a reference.
        train_loss_first: Loss of the first step.
        train_loss_last: Loss of the last step.
        eval_loss_first: Loss on the evaluation rows of the bare base, or of the adapter that training started from;
            None without any.
        eval_loss: Loss of the adapter on them.
        eval_metrics_first: The loss's own figures on them at the start; None if it has none.
        eval_metrics: The same of the adapter.
        tokens_per_second: Over all steps but the first of each process; None if there are no others.
        step_seconds_median: Of the steps' times, each the mean over a line of `metrics.jsonl`.
        peak_memory_bytes: The largest of all processes of the run.
        trainable_parameters: Of the adapter.
        total_parameters: Of base and adapter.
        adapted_weights_share: Which share of the base's weights, outside of embeddings and head, the adapter is on;
            None in runs of the first version.
        packed_weights_share: Which share of them is held in 4 or 8 bits; None without quantization.
        figures: What the method and the loss add, such as AdaLoRA's `ranks_kept`.
    """

    run: str
    adapter: str
    adapter_digest: str
    adapter_step: int
    steps: int
    skipped_steps: int
    tokens: int
    supervised_tokens: int
    train_loss_first: float | None
    train_loss_last: float | None
    eval_loss_first: float | None
    eval_loss: float | None
    tokens_per_second: float | None
    step_seconds_median: float | None
    peak_memory_bytes: int
    trainable_parameters: int
    total_parameters: int
    adapted_weights_share: float | None = None
    packed_weights_share: float | None = None
    loss_type: str | None = None
    reference: str | None = None
    eval_metrics_first: dict[str, float] | None = None
    eval_metrics: dict[str, float] | None = None
    figures: dict[str, Any] = field(default_factory=dict, metadata=the_rest(dict))

    def as_json(self) -> dict[str, Any]:
        """As plain data, the figures of the method beside the others."""
        return to_json(self)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Summary:
        """The summary that `as_json` made the content of, in this version or an earlier one.

        Raises:
            ValueError: It is none; the message names the first field that is missing or wrong.
        """
        return from_json(cls, content)
