"""`--gate gate.yaml`: what a candidate must show before it may take a champion's place."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from lamina.config.section import Section
from lamina.config.tasks import GENERAL

Share = Annotated[float, Field(gt=0.0, lt=1.0)]


class BetterCheck(Section):
    """The candidate must be better than the champion."""

    task: str
    """A task's file, relative to the gate's, or the name of a built-in one."""

    metric: str
    """One of its metrics."""


class NotWorseCheck(Section):
    """The candidate may be worse than the champion by less than a margin."""

    metric: str
    """A metric; `general_loss`, `general_kl` and `general_same` are of general text."""

    margin: Annotated[float, Field(gt=0.0)]
    """How much worse is still good enough, in units of the metric."""

    task: str = GENERAL
    """A task's file, or the name of a built-in one; by default forgetting on general text."""


class FloorCheck(Section):
    """The candidate must reach a value, whatever the champion does."""

    metric: str
    """A metric."""

    at_least: float | None = None
    """What the interval's lower end must reach."""

    at_most: float | None = None
    """What the interval's upper end must not pass, for metrics of which less is better."""

    task: str = GENERAL
    """A task's file, or the name of a built-in one."""

    @model_validator(mode="after")
    def _check_one(self) -> FloorCheck:
        if (self.at_least is None) == (self.at_most is None):
            raise ValueError("a floor has either at_least or at_most. Give one of them.")
        return self


class GateLimits(Section):
    """What the candidate may cost."""

    latency_seconds: Annotated[float, Field(gt=0.0)] | None = None
    """Median time for an answer to a row of the first task, asked alone."""

    adapter_mb: Annotated[float, Field(gt=0.0)] | None = None
    """Size of the adapter's files, in millions of bytes."""

    memory_gib: Annotated[float, Field(gt=0.0)] | None = None
    """Memory that the weights of base and adapter take, in GiB."""


class GateConfig(Section):
    """A gate."""

    better: list[BetterCheck] = Field(default_factory=list)
    """Metrics on which the candidate must be better."""

    not_worse: list[NotWorseCheck] = Field(default_factory=list)
    """Metrics on which it may not be worse."""

    floors: list[FloorCheck] = Field(default_factory=list)
    """Values that it must reach."""

    limits: GateLimits = Field(default_factory=GateLimits)
    """What it may cost."""

    certificate: Literal["required", "any"] = "any"
    """`required`: the candidate is an adapter whose probes give the logits that they gave at the end of training."""

    leakage: Literal["none", "no_exact", "any"] = "any"
    """Rows that the candidate's training saw: `none` allows no row with the same or nearly the same prompt, `no_exact`
    none with the same prompt."""

    license: list[str] | None = None
    """Licenses that the base's model card may name, such as `[apache-2.0]`."""

    alpha: Share = 0.05
    """Chance that the statistical checks pass although one should not, all of them together."""

    power: Share = 0.8
    """Chance of finding a difference, for the rows that are asked for."""

    @model_validator(mode="after")
    def _check_any(self) -> GateConfig:
        if not (self.better or self.not_worse or self.floors):
            raise ValueError("the gate checks nothing. Add better: [{task: FILE.yaml, metric: exact_match}].")
        return self
