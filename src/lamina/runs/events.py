"""Events of a run, one class for each kind. `metrics.jsonl`, views and trackers all read the same stream of events.

A line of `metrics.jsonl` is an event's `as_json`: `event` (its kind), `step`, `time`, and the fields of its kind.
`event_from_json` is strict about what this version writes. A log may have lines from several versions of lamina, and
does not affect how a run continues, so lines from other versions are no error: fields that an earlier version did not
write have defaults, a kind that only a newer version has becomes `Unknown`, and a newer version's fields are ignored.
`format` in the manifest says whether the directory as a whole can be read.
"""

from __future__ import annotations

import json
import time as clock
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, Literal

from lamina.errors import RunError, TrainingError
from lamina.runs.flat import from_json, the_rest, to_json
from lamina.runs.summary import Summary


def _now() -> float:
    return round(clock.time(), 3)


@dataclass(frozen=True)
class Event:
    """An event.

    Attributes:
        kind: Name of the kind in `metrics.jsonl`.
        step: Number of optimizer steps taken so far.
        time: Seconds since the epoch.
    """

    kind: ClassVar[str]

    step: int
    time: float = field(default_factory=_now, kw_only=True)

    def as_json(self) -> dict[str, Any]:
        """Converts to plain data, as in `metrics.jsonl`."""
        return {"event": self.kind, **to_json(self)}


OnEvent = Callable[[Event], None]


@dataclass(frozen=True, kw_only=True)
class Note(Event):
    """A message to the user.

    Attributes:
        message: A sentence.
        rows: Numbers of the rows of data that it concerns, if any.
    """

    kind: ClassVar[str] = "note"

    message: str
    rows: list[int] | None = None


@dataclass(frozen=True, kw_only=True)
class Started(Event):
    """Setup is complete, and the first step follows.

    Attributes:
        total_steps: Optimizer steps of the whole run, including those before a resume.
        steps_per_epoch: Optimizer steps in an epoch.
        modules: Number of modules that the adapter is on.
        trainable_parameters: Number of parameters of the adapter.
        total_parameters: Number of parameters of base and adapter.
        dtype: Dtype of the base, such as `bfloat16`.
        device: Device of the base.
        gradient_checkpointing: What is recomputed in the backward: all layers, none, or the cheap parts of each.
        fused_layers: Number of decoder layers that run as one fused operation.
        estimated_seconds: Estimated time of the remaining steps.
        data_report: The data report, in lines.
    """

    kind: ClassVar[str] = "start"

    total_steps: int
    steps_per_epoch: int
    modules: int
    trainable_parameters: int
    total_parameters: int
    dtype: str
    device: str
    gradient_checkpointing: bool | Literal["selective"]
    fused_layers: int
    estimated_seconds: float
    data_report: list[str]


@dataclass(frozen=True)
class Segment:
    """A part of an example.

    Attributes:
        text: Text of its tokens.
        supervised: Whether its tokens are in the loss.
    """

    text: str
    supervised: bool


@dataclass(frozen=True, kw_only=True)
class FirstExample(Event):
    """The first training example as the model sees it.

    Attributes:
        segments: The example, split where tokens in the loss begin and end.
    """

    kind: ClassVar[str] = "example"

    segments: list[Segment]


def _numbers(content: dict[str, Any]) -> dict[str, float]:
    return {name: value for name, value in content.items() if isinstance(value, int | float)}


@dataclass(frozen=True, kw_only=True)
class Measured(Event):
    """An event with a loss and the loss's own metrics.

    Raises:
        TrainingError: A metric has the same name as a field, so `metrics.jsonl` could hold only one of them.
    """

    metrics: dict[str, float] = field(default_factory=dict, metadata=the_rest(_numbers))

    def __post_init__(self) -> None:
        taken = {"event", *(each.name for each in fields(self))} & self.metrics.keys()
        if taken:
            name = min(taken)
            raise TrainingError(
                f"the loss has a metric named {name!r}, which is a field of events. Fix: rename it in the loss, for "
                f"example to 'loss/{name}'."
            )

    def scalars(self) -> dict[str, float]:
        """Returns what trackers plot over the steps: every number, by its name in `metrics.jsonl`."""
        return _numbers({name: value for name, value in to_json(self).items() if name not in ("step", "time")})


@dataclass(frozen=True, kw_only=True)
class Step(Measured):
    """The steps since the last event of this kind: one, or `train.logging_steps` of them.

    Attributes:
        loss: Their mean loss, weighted by each step's normalizer.
        metrics: The loss's own metrics, such as `rewards/accuracies`.
        learning_rate: Learning rate of the last step.
        grad_norm: Norm of the last step's gradient before clipping.
        tokens: Number of tokens, without padding.
        supervised_tokens: Number of tokens in the loss.
        seconds: Total time of the steps.
        step_seconds: Mean time of a step.
        epoch: Number of epochs so far, with a fraction.
        memory_bytes: Peak memory so far, over all processes of the run.
        memory_by_rank: Peak memory of each of several processes; None for a single one.
        seconds_by_rank: Time that each of them computed in the last step, without communication.
    """

    kind: ClassVar[str] = "step"

    loss: float
    learning_rate: float
    grad_norm: float
    tokens: int
    supervised_tokens: int
    seconds: float
    step_seconds: float
    epoch: float
    memory_bytes: int
    memory_by_rank: list[int] | None = None
    seconds_by_rank: list[float] | None = None


@dataclass(frozen=True, kw_only=True)
class Evaluation(Measured):
    """An evaluation on the evaluation rows.

    Attributes:
        eval_loss: Mean loss over their supervised tokens, or the loss's own mean.
        of: What was evaluated: the adapter in training, or what it is compared with (the bare base, or the adapter that
            training starts from).
        best_step: Step of the best adapter so far, -1 before the first; None for what it is compared with.
        metrics: The loss's own metrics.
    """

    kind: ClassVar[str] = "eval"

    eval_loss: float
    of: Literal["base", "start", "adapter"]
    best_step: int | None = None


@dataclass(frozen=True, kw_only=True)
class CheckpointSaved(Event):
    """A checkpoint was saved, from which the run can be resumed.

    Attributes:
        path: The checkpoint's folder.
    """

    kind: ClassVar[str] = "checkpoint"

    path: str


@dataclass(frozen=True, kw_only=True)
class Progress(Event):
    """The progress of an evaluation; it is displayed, but not written to the log.

    Attributes:
        what: What is evaluated.
        done: Number of rows that were evaluated.
        total: Number of all rows.
    """

    kind: ClassVar[str] = "progress"

    what: str
    done: int
    total: int


@dataclass(frozen=True, kw_only=True)
class Interrupted(Event):
    """The run was stopped by a signal; there is a checkpoint of the last complete step.

    Attributes:
        signal: Name of the signal, such as `SIGINT`; None if another process of the run received it.
        resume: The command that resumes the run.
    """

    kind: ClassVar[str] = "interrupted"

    signal: str | None
    resume: str


@dataclass(frozen=True, kw_only=True)
class Finished(Event):
    """The run is finished and the adapter saved.

    Attributes:
        summary: The figures of the run.
    """

    kind: ClassVar[str] = "end"

    summary: Summary = field(metadata=the_rest(Summary.from_json))


@dataclass(frozen=True, kw_only=True)
class Unknown(Event):
    """An event of a kind that only a newer version has.

    Attributes:
        content: The whole line, as plain data.
    """

    kind: ClassVar[str] = "unknown"

    content: dict[str, Any]

    def as_json(self) -> dict[str, Any]:
        return dict(self.content)


# The kinds that are written to the log. Other parts of lamina, such as `verify`, define more kinds.
KINDS: dict[str, type[Event]] = {
    each.kind: each for each in (Note, Started, FirstExample, Step, Evaluation, CheckpointSaved, Interrupted, Finished)
}


def event_from_json(content: Mapping[str, Any]) -> Event:
    """Reads what `as_json` wrote, in this version or another.

    Raises:
        ValueError: It is not an event, or lacks a field that every version writes; the message names the field.
    """
    name = content.get("event")
    if not isinstance(name, str):
        raise ValueError(f"event: {name!r} is not a kind of event")
    if name not in KINDS:
        return from_json(Unknown, {**content, "content": dict(content)})
    return from_json(KINDS[name], {field: value for field, value in content.items() if field != "event"})


def event_lines(path: Path) -> Iterator[tuple[str, Event]]:
    """Yields the complete lines of a `metrics.jsonl`, each with its event; nothing if there is no such file.

    Lines that are not JSON, such as one that a crash truncated, are skipped.

    Raises:
        RunError: A line is JSON, but not an event.
    """
    with suppress(FileNotFoundError):
        for number, line in enumerate(path.read_text(encoding="utf-8").split("\n")[:-1], start=1):
            try:
                content = json.loads(line)
            except ValueError:
                continue
            try:
                yield line, event_from_json(content)
            except (ValueError, AttributeError) as error:
                message = f"{path}: line {number} is not an event ({error}). Fix: delete that line."
                raise RunError(message) from None
