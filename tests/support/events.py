"""Events for tests that need no run."""

from __future__ import annotations

from lamina.runs.events import Step


def step(number: int, loss: float) -> Step:
    """A step with a loss, and other figures that follow from its number."""
    return Step(
        number,
        loss=loss,
        learning_rate=1e-3 / number,
        grad_norm=1.0,
        tokens=10,
        supervised_tokens=5,
        seconds=1.0,
        step_seconds=1.0,
        epoch=number / 4,
        memory_bytes=1,
        metrics={"accuracy": number / 10},
    )
