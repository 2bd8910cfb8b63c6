"""Events: each kind writes and reads itself, strictly its own version's and with patience other versions'."""

from __future__ import annotations

import json
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Any

import pytest

from lamina.config import Config
from lamina.errors import RunError, TrainingError
from lamina.runs import Run, events
from lamina.runs.events import KINDS, Event, Measured, Unknown, event_from_json, event_lines
from lamina.signals import StopRequest
from lamina.training.event_log import EventLog
from tests.support.runs import SUMMARY

EVENTS: list[Event] = [
    events.Note(0, message="Lädt ..."),
    events.Note(3, message="not finite", rows=[4, 7]),
    events.Started(
        2,
        total_steps=8,
        steps_per_epoch=4,
        modules=14,
        trainable_parameters=512,
        total_parameters=3824,
        dtype="float32",
        device="cpu",
        gradient_checkpointing="selective",
        fused_layers=2,
        estimated_seconds=0.5,
        data_report=["16 rows"],
    ),
    events.FirstExample(0, segments=[events.Segment("a", False), events.Segment("b", True)]),
    events.Step(
        1,
        loss=5.5,
        metrics={"rewards/accuracies": 0.5, "rewards/margins": 1.0},
        learning_rate=1e-4,
        grad_norm=0.25,
        tokens=155,
        supervised_tokens=26,
        seconds=0.5,
        step_seconds=0.25,
        epoch=0.25,
        memory_bytes=5,
    ),
    events.Step(
        2,
        loss=5.5,
        learning_rate=1e-4,
        grad_norm=0.25,
        tokens=155,
        supervised_tokens=26,
        seconds=0.5,
        step_seconds=0.25,
        epoch=0.5,
        memory_bytes=5,
        memory_by_rank=[5, 4],
        seconds_by_rank=[0.25, 0.125],
    ),
    events.Evaluation(0, eval_loss=6.5, of="base", metrics={"rewards/margins": 0.0}),
    events.Evaluation(4, eval_loss=6.0, of="adapter", best_step=-1),
    events.CheckpointSaved(4, path="runs/a/checkpoints/step-00000004"),
    events.Interrupted(5, signal="SIGINT", resume="lamina train a --resume"),
    events.Interrupted(5, signal=None, resume="lamina train a --resume"),
    events.Finished(8, summary=SUMMARY),
]
REST = {"metrics", "summary"}  # whose content stands beside the other fields

ids = [f"{type(event).__name__}-{number}" for number, event in enumerate(EVENTS)]
each = pytest.mark.parametrize("event", EVENTS, ids=ids)


def through_disk(event: Event) -> dict[str, Any]:
    return json.loads(json.dumps(event.as_json()))


def own_fields(event: Event) -> list[Field[Any]]:
    return [field for field in fields(event) if field.name not in REST]


def test_every_kind_that_is_written_is_here() -> None:
    written = {
        kind
        for kind in vars(events).values()
        if isinstance(kind, type) and issubclass(kind, Event) and hasattr(kind, "kind")
    } - {events.Progress, Unknown}
    assert {type(event) for event in EVENTS} == written == set(KINDS.values())
    assert all(name == kind.kind for name, kind in KINDS.items())


@each
def test_what_is_written_is_read(event: Event) -> None:
    assert event_from_json(through_disk(event)) == event


@each
def test_its_line_is_flat(event: Event) -> None:
    line = event.as_json()
    assert list(line)[:3] == ["event", "step", "time"]
    assert (line["event"], line["step"], line["time"]) == (event.kind, event.step, event.time)
    assert round(event.time, 3) == event.time
    named = {
        field.name for field in own_fields(event) if getattr(event, field.name) is not None or field.default is not None
    }
    beside: dict[str, Any] = {}
    if isinstance(event, Measured):
        beside = event.metrics
    if isinstance(event, events.Finished):
        beside = event.summary.as_json()
    assert line.keys() == {"event"} | named | beside.keys()
    assert beside.items() <= line.items()


@each
def test_a_field_that_every_version_writes_must_be_there(event: Event) -> None:
    for field in own_fields(event):
        line = through_disk(event)
        if field.default is MISSING and field.default_factory is MISSING:
            del line[field.name]
            with pytest.raises(ValueError, match=rf"^{field.name}: "):
                event_from_json(line)


@each
def test_a_field_of_another_type_is_named(event: Event) -> None:
    for field in own_fields(event):
        with pytest.raises(ValueError, match=rf"^{field.name}[:.]"):
            event_from_json({**through_disk(event), field.name: {"not": "this"}})


@each
def test_what_a_newer_version_adds_is_passed_over(event: Event) -> None:
    found = event_from_json({**through_disk(event), "novelty": "x"})
    if isinstance(found, events.Finished):  # where it looks like a figure of the method
        assert found.summary.figures.pop("novelty") == "x"
    assert found == event


def test_a_kind_of_a_newer_version_is_kept_as_it_is() -> None:
    line = {"event": "gate", "step": 3, "time": 1.5, "passed": True}
    found = event_from_json(line)
    assert isinstance(found, Unknown) and (found.step, found.time) == (3, 1.5)
    assert found.as_json() == line


@pytest.mark.parametrize("name", ["event", "step", "time", "loss", "epoch", "metrics"])
def test_a_figure_may_not_take_the_name_of_a_field(name: str) -> None:
    step = next(event for event in EVENTS if isinstance(event, events.Step))
    values = {field.name: getattr(step, field.name) for field in fields(step)}
    with pytest.raises(TrainingError, match=f"metric named '{name}'.*for example to 'loss/{name}'"):
        events.Step(**{**values, "metrics": {name: 1.0}})
    events.Step(**{**values, "metrics": {f"loss/{name}": 1.0}})


def test_trackers_draw_numbers_alone() -> None:
    for event in EVENTS:
        if isinstance(event, Measured):
            line = event.as_json()
            numbers = {name for name, value in line.items() if isinstance(value, int | float)}
            assert event.scalars() == {name: line[name] for name in numbers - {"step", "time"}}


def test_lines(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    assert list(event_lines(path)) == []
    good = [json.dumps(event.as_json()) for event in EVENTS]
    path.write_text("\n".join([*good[:2], '{"event": "no', *good[2:], '{"event": "note", "step"']))
    assert [event for _, event in event_lines(path)] == EVENTS, "without the line that was cut off"
    assert [line for line, _ in event_lines(path)] == good
    for wrong, words in (("5", "'int' object"), ('{"step": 3}', "event: None"), ('{"event": "note"}', "step: ")):
        path.write_text(f"{good[0]}\n{wrong}\n")
        with pytest.raises(RunError, match=rf"metrics\.jsonl: line 2 is not an event \({words}.*Fix: delete that line"):
            list(event_lines(path))


def test_events_by_kind(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.metrics_path.write_text("".join(json.dumps(event.as_json()) + "\n" for event in EVENTS))
    assert list(run.events()) == EVENTS
    for kind in KINDS.values():
        assert list(run.events(kind)) == [event for event in EVENTS if type(event) is kind]


def test_a_log_that_goes_on_keeps_lines_of_any_version_to_the_letter(tmp_path: Path) -> None:
    run = Run(tmp_path)
    kept = ['{"event": "gate",  "step": 2, "time": 1.5}', '{"message":"ü","event":"note","step":3,"time":2,"more":1}']
    later = '{"event": "note", "step": 4, "time": 3.5, "message": "of a step that is taken again"}'
    run.metrics_path.write_text("".join(f"{line}\n" for line in (*kept, later)))
    told: list[Event] = []
    config = Config.model_validate({"data": {"train": "a.jsonl"}})
    with EventLog(run, config, told.append, 3, StopRequest()) as log:
        log.emit(EVENTS[0])
    assert run.metrics_path.read_text().splitlines()[:2] == kept
    assert len(run.metrics_path.read_text().splitlines()) == 3
    assert told == [EVENTS[0]] == list(run.events())[2:]
