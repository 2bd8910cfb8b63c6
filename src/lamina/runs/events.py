"""Events: what happens in a run, a class a kind; the one stream that `metrics.jsonl`, views and trackers all read.

A line of `metrics.jsonl` is an event's `as_json`: `event` (its kind), `step`, `time`, and its own fields beside them.
`event_from_json` reads strictly what this version wrote. A log has lines of every version that took part in its run,
and nothing in it decides how the run goes on, so that other versions' lines stop nobody: what an earlier version did
not write has a default, a kind that only a newer one knows is `Unknown`, and a newer one's fields are passed over.
Whether the directory as a whole can be read, `format` in its manifest says.
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
    """Something that happened.

    Attributes:
        kind: The name of its class in `metrics.jsonl`.
        step: Optimizer steps taken by then.
        time: Seconds since the epoch.
    """

    kind: ClassVar[str]

    step: int
    time: float = field(default_factory=_now, kw_only=True)

    def as_json(self) -> dict[str, Any]:
        """As plain data, the way it stands in `metrics.jsonl`."""
        return {"event": self.kind, **to_json(self)}


OnEvent = Callable[[Event], None]


@dataclass(frozen=True, kw_only=True)
class Note(Event):
    """Something that a user should know.

    Attributes:
        message: A sentence.
        rows: The rows of data that it is about, if it is about some.
    """

    kind: ClassVar[str] = "note"

    message: str
    rows: list[int] | None = None


@dataclass(frozen=True, kw_only=True)
class Started(Event):
    """Everything is there, and the first step comes next.

    Attributes:
        total_steps: Of the whole run, also when it goes on in the middle.
        steps_per_epoch: Optimizer steps in an epoch.
        modules: How many the adapter is on.
        trainable_parameters: Of the adapter.
        total_parameters: Of base and adapter.
        dtype: What the base is held in, such as `bfloat16`.
        device: Where.
        gradient_checkpointing: Which layers are recomputed in the backward: all, none, or the cheap parts of each.
        fused_layers: How many decoder layers run as one forward and one backward.
        estimated_seconds: For the steps that are left.
        data_report: What became of the data, in lines.
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
    """A piece of an example.

    Attributes:
        text: As the tokenizer decodes it.
        supervised: Whether its tokens are in the loss.
    """

    text: str
    supervised: bool


@dataclass(frozen=True, kw_only=True)
class FirstExample(Event):
    """The first training example as the model sees it.

    Attributes:
        segments: It, split where the loss begins and ends.
    """

    kind: ClassVar[str] = "example"

    segments: list[Segment]


def _numbers(content: dict[str, Any]) -> dict[str, float]:
    return {name: value for name, value in content.items() if isinstance(value, int | float)}


@dataclass(frozen=True, kw_only=True)
class Measured(Event):
    """An event with a loss and the loss's own figures beside it.

    Raises:
        TrainingError: A figure has the name of a field, so that `metrics.jsonl` could hold only one of the two.
    """

    metrics: dict[str, float] = field(default_factory=dict, metadata=the_rest(_numbers))

    def __post_init__(self) -> None:
        taken = {"event", *(each.name for each in fields(self))} & self.metrics.keys()
        if taken:
            name = min(taken)
            raise TrainingError(
                f"the loss gives a figure the name {name!r}, which events have themselves. Fix: let the loss call it "
                f"otherwise, such as 'loss/{name}'."
            )

    def scalars(self) -> dict[str, float]:
        """What a tracker draws over the steps: every figure by its name in `metrics.jsonl`."""
        return _numbers({name: value for name, value in to_json(self).items() if name not in ("step", "time")})


@dataclass(frozen=True, kw_only=True)
class Step(Measured):
    """The steps since the last event of this kind: one or, with `train.logging_steps`, some.

    Attributes:
        loss: Their mean, by what each was divided by.
        metrics: The loss's own figures, such as `rewards/accuracies`.
        learning_rate: Of the last of them.
        grad_norm: Norm of the last one's gradient before clipping.
        tokens: Real tokens.
        supervised_tokens: Those in the loss.
        seconds: All of them together.
        step_seconds: Each of them, in the mean.
        epoch: How far the run is.
        memory_bytes: Largest so far, over all processes of the run.
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


@dataclass(frozen=True, kw_only=True)
class Evaluation(Measured):
    """A pass over the evaluation rows.

    Attributes:
        eval_loss: Over their supervised tokens, or the loss's own mean.
        of: What was evaluated: the adapter in training, or what it is compared with, which is the bare base, or the
            adapter that training starts from.
        best_step: Step of the best adapter so far, -1 before the first; None of what it is compared with.
        metrics: The loss's own figures.
    """

    kind: ClassVar[str] = "eval"

    eval_loss: float
    of: Literal["base", "start", "adapter"]
    best_step: int | None = None


@dataclass(frozen=True, kw_only=True)
class CheckpointSaved(Event):
    """The run can go on from here.

    Attributes:
        path: The checkpoint's folder.
    """

    kind: ClassVar[str] = "checkpoint"

    path: str


@dataclass(frozen=True, kw_only=True)
class Progress(Event):
    """How far an evaluation is; shown and never written.

    Attributes:
        what: What is evaluated.
        done: Rows that are.
        total: All rows.
    """

    kind: ClassVar[str] = "progress"

    what: str
    done: int
    total: int


@dataclass(frozen=True, kw_only=True)
class Interrupted(Event):
    """A signal came; there is a checkpoint of the last whole step.

    Attributes:
        signal: Such as `SIGINT`; None where it came to another process of the run.
        resume: The command that goes on.
    """

    kind: ClassVar[str] = "interrupted"

    signal: str | None
    resume: str


@dataclass(frozen=True, kw_only=True)
class Finished(Event):
    """The adapter is saved.

    Attributes:
        summary: The figures of the run.
    """

    kind: ClassVar[str] = "end"

    summary: Summary = field(metadata=the_rest(Summary.from_json))


@dataclass(frozen=True, kw_only=True)
class Unknown(Event):
    """An event of a kind that only a newer version knows.

    Attributes:
        content: All of it, as it was written.
    """

    kind: ClassVar[str] = "unknown"

    content: dict[str, Any]

    def as_json(self) -> dict[str, Any]:
        return dict(self.content)


# Those that are written. Other parts of lamina have further kinds of their own, such as `verify`.
KINDS: dict[str, type[Event]] = {
    each.kind: each for each in (Note, Started, FirstExample, Step, Evaluation, CheckpointSaved, Interrupted, Finished)
}


def event_from_json(content: Mapping[str, Any]) -> Event:
    """The event that `as_json` made the content of, in this version or another.

    Raises:
        ValueError: It is none, or lacks what every version writes; the message names the field.
    """
    name = content.get("event")
    if not isinstance(name, str):
        raise ValueError(f"event: {name!r} is no kind of event")
    if name not in KINDS:
        return from_json(Unknown, {**content, "content": dict(content)})
    return from_json(KINDS[name], {field: value for field, value in content.items() if field != "event"})


def event_lines(path: Path) -> Iterator[tuple[str, Event]]:
    """The whole lines of a `metrics.jsonl`, each with its event; none if there is no such file.

    What is no JSON, such as the rest of a line that a crash cut off, is passed over.

    Raises:
        RunError: A line is JSON and no event.
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
                message = f"{path}: line {number} is no event ({error}). Fix: delete that line."
                raise RunError(message) from None
