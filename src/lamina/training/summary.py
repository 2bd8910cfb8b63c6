"""Sums up a finished run."""

from __future__ import annotations

import statistics
from dataclasses import dataclass

from lamina.methods.shared.counts import count_parameters, total_parameters
from lamina.runs import events
from lamina.runs.summary import Summary
from lamina.training.checkpoint import TrainState
from lamina.training.session import Session


@dataclass(frozen=True)
class Together:
    """How the processes of a run worked together.

    Attributes:
        world_size: How many there were.
        strategy: How they shared the work.
        communication_seconds: Time in communication of the process that waited least for others.
        peak_memory_by_rank: Peak memory of each process, in bytes.
    """

    world_size: int
    strategy: str
    communication_seconds: float
    peak_memory_by_rank: list[int]


def summarise(session: Session, state: TrainState, digest: str, together: Together) -> Summary:
    """The summary of a run that has saved its adapter.

    Args:
        session: The run's parts.
        state: Where it ended.
        digest: Of the adapter.
        together: How its processes worked together.
    """
    run, train = session.run, session.config.train
    steps = [event.step_seconds for event in run.events(events.Step)]
    best = train.load_best_model_at_end and state.best_eval_loss is not None
    return Summary(
        run=str(run.path),
        adapter=str(run.adapter),
        adapter_digest=digest,
        adapter_step=state.best_step if best else state.step,
        steps=state.step,
        skipped_steps=state.skipped_steps,
        tokens=state.tokens,
        supervised_tokens=state.supervised_tokens,
        train_loss_first=state.train_loss_first,
        train_loss_last=state.train_loss_last,
        eval_loss_first=state.eval_loss_first,
        eval_loss=state.best_eval_loss if best else state.eval_loss_last,
        tokens_per_second=state.timed_tokens / state.timed_seconds if state.timed_seconds else None,
        step_seconds_median=statistics.median(steps) if steps else None,
        peak_memory_bytes=state.peak_memory_bytes,
        trainable_parameters=count_parameters(session.tensors.values()),
        total_parameters=total_parameters(session.base.model),
        adapted_weights_share=session.coverage.share,
        packed_weights_share=session.base.packing.share if session.base.packing is not None else None,
        learning_rate=train.peak_learning_rate,
        loss_type=session.config.loss.type,
        reference=session.reference and session.reference.digest,
        eval_metrics_first=state.eval_metrics_first or None,
        eval_metrics=(state.best_eval_metrics if best else state.eval_metrics_last) or None,
        world_size=together.world_size,
        strategy=together.strategy,
        communication_seconds=together.communication_seconds,
        peak_memory_by_rank=together.peak_memory_by_rank,
        figures=session.hooks.figures() | session.loss.figures(),
    )
