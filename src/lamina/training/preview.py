"""What a run says before the first step: how it runs, how long it will take, and one example of its data."""

from __future__ import annotations

import itertools

from lamina.compute.fusion import FusionReport
from lamina.compute.kernels import kernel_notes
from lamina.distributed.assign import balance, sharing
from lamina.methods.shared.counts import count_parameters, total_parameters
from lamina.runs.events import FirstExample, Note, Segment, Started
from lamina.training.backward import costs_of, split_of
from lamina.training.checkpoint import TrainState
from lamina.training.event_log import EventLog
from lamina.training.plan.time import measured_tokens_per_second
from lamina.training.session import Session

# How much longer than evenly divided a step may take without a note.
_UNEVEN = 1.2


def announce(session: Session, state: TrainState, fusion: FusionReport, log: EventLog) -> None:
    """Tells how the run runs, measures its speed, and shows an example.

    Args:
        session: The run's parts, with the model in `fast_path`.
        state: Where the run stands.
        fusion: How the model runs.
        log: What is told.
    """
    model, parameters = session.base.model, list(session.tensors.values())
    notes = [*fusion.notes, *kernel_notes(model.device, session.config.train.compile)]
    notes += _sharing_notes(session)
    for note in notes:
        log.emit(Note(state.step, message=note))
    # What needs the most memory is tried before the first step, and not by chance hours later.
    sample = session.epoch_plan(0).largest()
    parts = (model, session.head, session.loss, parameters, sample, fusion.layout)
    speed = measured_tokens_per_second(*parts, split_of(session.world))
    tokens_per_step = session.dataset.report.train.tokens / session.steps_per_epoch
    left = (session.total_steps - state.step) * tokens_per_step
    log.emit(
        Started(
            state.step,
            total_steps=session.total_steps,
            steps_per_epoch=session.steps_per_epoch,
            modules=len(session.injection.layers),
            trainable_parameters=count_parameters(parameters),
            total_parameters=total_parameters(model),
            dtype=str(session.base.dtype).removeprefix("torch."),
            device=str(model.device),
            gradient_checkpointing=fusion.recompute,
            fused_layers=fusion.fused,
            estimated_seconds=left / speed,
            data_report=session.dataset.report.lines(),
        )
    )
    log.emit(FirstExample(state.step, segments=colored_example(session)))


def _sharing_notes(session: Session) -> list[str]:
    """Says how the processes of a run share a step."""
    world, count = session.world, session.per_step
    if world.size == 1:
        return []
    teams = world.size // world.team_size
    step = f"A step has {count} micro-batch{'es' * (count > 1)}"
    if teams == 1:
        return [f"{step}, each of them shared by all {world.size} processes."]
    who = "processes" if world.team_size == 1 else f"teams of {world.team_size} processes"
    shared = f"{step} over all processes, {sharing(count, teams, who)}."
    if count < teams:
        return [f"{shared} Raise train.gradient_accumulation_steps or train.global_batch_size, or start fewer."]
    factor = balance(costs_of(session.base.model, session.epoch_plan(0)[:count]), teams)
    if factor <= _UNEVEN:
        return [shared]
    return [
        f"{shared} They wait for each other: a step takes {factor:.1f} times as long as if it could be divided "
        f"evenly. Let the number of micro-batches be a multiple of {teams}."
    ]


def colored_example(session: Session) -> list[Segment]:
    """The first training example as the model sees it, split where the loss begins and ends."""
    example = session.dataset.train[0]
    cuts = [
        0,
        *(i for i in range(1, len(example)) if example.supervised[i] != example.supervised[i - 1]),
        len(example),
    ]
    decode = session.base.tokenizer.decode
    return [
        Segment(str(decode(example.input_ids[a:b].tolist())), bool(example.supervised[a]))
        for a, b in itertools.pairwise(cuts)
    ]
