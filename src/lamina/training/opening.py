"""Opens a run: locks its directory, starts it or takes it up again, and puts the checkpoint back.

The first process does it for all. The others learn what it found, and need no access to the run directory.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass

from lamina import files
from lamina.config import Config
from lamina.distributed.ranks import restarts
from lamina.runs import Run, check_start, exclusive, recorded, start_run
from lamina.runs.events import Note
from lamina.training.checkpoint import (
    TrainState,
    checkpoint_path,
    checkpoint_step,
    load_checkpoint,
    newest_checkpoint,
    put_back,
)
from lamina.training.event_log import EventLog
from lamina.training.inputs import check_inputs
from lamina.training.session import Session


@dataclass(frozen=True)
class Begin:
    """Where a run begins, as the first process finds it.

    Attributes:
        finished: Whether it already is.
        step: Step of the checkpoint to go on from; -1 for none.
        was_killed: Whether its last process ended without a word.
    """

    finished: bool = False
    step: int = -1
    was_killed: bool = False


def begin_run(config: Config, run: Run, resume: bool, stack: ExitStack) -> Begin:
    """Locks the run directory, and starts the run or takes it up again."""
    resume = resume or (restarts() > 0 and run.begun)
    check_start(config, resume)
    if not resume:
        check_inputs(config)
    stack.enter_context(exclusive(run))
    start_run(config, resume)
    for folder in (run.path, run.checkpoints):
        files.remove_leftovers(folder)
    if run.summary is not None and run.adapter.is_dir():
        return Begin(finished=True)
    checkpoint = newest_checkpoint(run.checkpoints)
    was_killed = run.begun and run.manifest.status == "running"  # by somebody who has the lock no more
    stack.enter_context(recorded(run))
    return Begin(step=-1 if checkpoint is None else checkpoint_step(checkpoint), was_killed=was_killed)


def take_up(session: Session, step: int, log: EventLog) -> TrainState:
    """The state to start from: the checkpoint's, put back into adapter and optimizer, or a fresh one.

    The first process alone reads it, so that the others need no access to the run directory.
    """
    if step < 0:
        return TrainState()
    path = checkpoint_path(session.run.checkpoints, step)
    content = session.world.once(lambda: load_checkpoint(path), "reading the checkpoint")
    parts = (session.tensors, session.optimizer, session.hooks, session.base.model.device)
    state = put_back(content, path, *parts, session.engine)
    if not state.seeded_by_step and session.world.size > 1:
        state.seeded_by_step = True
        note = "The run was begun by an earlier version in one process; from here on, its dropout is another one."
        log.emit(Note(state.step, message=note))
    log.emit(Note(state.step, message=f"Resumed from step {state.step} of {session.total_steps}."))
    return state
