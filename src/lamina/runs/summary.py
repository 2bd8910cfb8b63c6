"""The figures of a finished run: what its manifest keeps, and `lamina train --json` prints."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lamina.runs.flat import from_json, the_rest, to_json

LOSS_OF_SET = "eval_loss/"
"""Beginning of the metrics that are losses of evaluation sets with names."""


def losses_of_sets(metrics: Mapping[str, float] | None) -> dict[str, float]:
    """Returns the losses of the evaluation sets in an evaluation's metrics, by name."""
    found = (metrics or {}).items()
    return {name.removeprefix(LOSS_OF_SET): value for name, value in found if name.startswith(LOSS_OF_SET)}


@dataclass(frozen=True, kw_only=True)
class Summary:
    """The result of a run.

    Attributes:
        run: Directory of the run.
        adapter: Folder of the adapter.
        adapter_digest: Digest of the adapter's settings and tensors.
        adapter_step: The step after which the adapter was saved.
        steps: Number of optimizer steps.
        skipped_steps: Number of steps that were skipped because the gradient was not finite.
        tokens: Number of tokens trained on, without padding.
        supervised_tokens: Number of those in the loss.
        learning_rate: The peak; None in runs of earlier versions.
        loss_type: Name of the loss; None in runs of the first version.
        reference: Digest of what the loss compares with: of the base's weights, or of the adapter that training started
            from; None without a reference.
        train_loss_first: Loss of the first step.
        train_loss_last: Loss of the last step.
        eval_loss_first: Loss on the evaluation rows of the bare base, or of the adapter that training started from;
            None without evaluation rows.
        eval_loss: Loss of the adapter on the evaluation rows.
        eval_metrics_first: The loss's own metrics on the evaluation rows at the start; None if it has none.
        eval_metrics: The same of the adapter.
        tokens_per_second: Speed over all steps except the first of each process; None if there are no others.
        step_seconds_median: Median time of a step; with `train.logging_steps`, of the means that were logged.
        peak_memory_bytes: Peak memory of a process, the largest over all processes of the run.
        trainable_parameters: Number of parameters of the adapter.
        total_parameters: Number of parameters of base and adapter.
        adapted_weights_share: Share of the base's weights that the adapter covers, without embeddings and head; None
            in runs of the first version.
        packed_weights_share: Share of those weights that are in 4 or 8 bits; None without quantization.
        world_size: Number of processes that ended the run; None, as the next three, in runs of earlier versions.
        strategy: How they shared the work: `single`, `ddp`, `fsdp` or `deepspeed`.
        communication_seconds: Time in communication since the last start, of the process that waited least for others.
        peak_memory_by_rank: Peak memory of each of the processes that ended the run.
        figures: Figures of the method and the loss, such as AdaLoRA's `ranks_kept`.
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
    learning_rate: float | None = None
    loss_type: str | None = None
    reference: str | None = None
    eval_metrics_first: dict[str, float] | None = None
    eval_metrics: dict[str, float] | None = None
    world_size: int | None = None
    strategy: str | None = None
    communication_seconds: float | None = None
    peak_memory_by_rank: list[int] | None = None
    figures: dict[str, Any] = field(default_factory=dict, metadata=the_rest(dict))

    def as_json(self) -> dict[str, Any]:
        """Converts to plain data, with the method's figures at the same level."""
        return to_json(self)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Summary:
        """Reads what `as_json` wrote, in this version or an earlier one.

        Raises:
            ValueError: It is not a summary; the message names the first field that is missing or wrong.
        """
        return from_json(cls, content)
