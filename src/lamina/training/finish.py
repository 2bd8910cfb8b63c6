"""The end of a run: the adapter on disk, with its lock and probes, read again, and the run's summary."""

from __future__ import annotations

from collections.abc import Sequence

from lamina.adapters.adapter import save_adapter
from lamina.adapters.probes import Probe
from lamina.adapters.reload import check_written
from lamina.engine.probes import record_probes
from lamina.progress import Notify
from lamina.runs import timestamp
from lamina.runs.summary import Summary
from lamina.training.card import write_companions
from lamina.training.checkpoint import TrainState, load_best
from lamina.training.finite import check_adapter
from lamina.training.keep import lock_of
from lamina.training.session import Session
from lamina.training.summary import Together, summarise


def final_probes(session: Session, state: TrainState, notify: Notify) -> list[Probe]:
    """Puts the adapter of the best evaluation back, if it is not the last one, and records its probes.

    Args:
        session: The run's parts; the model is left in evaluation mode.
        state: Where the run ended.
        notify: Told which adapter it is.

    Returns:
        The probes; empty in processes that do not write, unless all must run the model together.

    Raises:
        TrainingError: The adapter is not finite.
    """
    world = session.world
    if session.config.train.load_best_model_at_end and state.best_step not in (-1, state.step):
        best = world.once(lambda: load_best(session.run.checkpoints, state.best_step), "reading the best adapter")
        session.injection.load_tensors(best)
        notify(f"The adapter is that of step {state.best_step}, the best evaluation.")
    check_adapter(session.tensors, state.step)
    session.base.model.eval()
    if not (world.is_first or world.lockstep):
        return []
    return record_probes(session.injection, session.template, in_lockstep=world.lockstep, by_layer=True)


def finish(session: Session, state: TrainState, notify: Notify, together: Together, probes: Sequence[Probe]) -> Summary:
    """Saves the adapter of the best evaluation, or else of the last step, and records that the run is finished.

    Args:
        session: The run's parts.
        state: Where the run ended.
        notify: Told what was found when the adapter was read again.
        together: How the run's processes worked together.
        probes: From `final_probes`.

    Returns:
        The summary.

    Raises:
        AdapterError: What was written cannot be read again.
    """
    run = session.run
    lock = lock_of(session)
    digest = save_adapter(run.adapter, session.injection, session.base, lock, probes)
    for note in check_written(run.adapter, session.injection, digest):
        notify(note)
    summary = summarise(session, state, digest, together)
    write_companions(session, lock, summary)
    run.record(status="finished", finished=timestamp(), summary=summary.as_json())
    return summary
