"""Reads a gate with the tasks that it names, and checks that every metric exists before anything is loaded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from lamina.config.gate import GateConfig
from lamina.config.sections import read_section, read_section_file
from lamina.config.tasks import GENERAL
from lamina.errors import ConfigError, Problem, nearest
from lamina.evaluation.gather import Prepared
from lamina.evaluation.result import metrics_of
from lamina.evaluation.subjects import prepare
from lamina.evaluation.table import Metric
from lamina.evaluation.tasks import find_tasks
from lamina.registry.digests import canonical, digest_of

# The smallest gate.
_BEGINS = "better: [{task: FILE.yaml, metric: exact_match}]"


@dataclass(frozen=True)
class Gate:
    """A gate, ready to be applied.

    Attributes:
        config: Its settings.
        tasks: The tasks that its checks name, by what they call them; general text is none of them.
        metrics: What each measures, by the same names, and of general text.
    """

    config: GateConfig
    tasks: Mapping[str, Prepared] = field(default_factory=dict)
    metrics: Mapping[str, Mapping[str, Metric]] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """SHA-256 of its settings and of the tasks' own."""
        tasks = {name: prepared.task.digest for name, prepared in self.tasks.items()}
        return digest_of(canonical([self.config.model_dump(mode="json"), tasks]))

    @property
    def needs_general(self) -> bool:
        """Whether a check is of general text."""
        return any(task == GENERAL for _, task, _ in _named(self.config))


def read_gate(gate: str | Path | Mapping[str, object]) -> Gate:
    """Reads a gate and its tasks.

    Args:
        gate: A YAML file, whose tasks' paths start at its folder; or a mapping with the same structure.

    Raises:
        ConfigError: A setting is not allowed, a task does not exist, or a check names a metric that it does not have;
            the metrics that are missing are all listed.
        DataError: A task has no rows.
    """
    if isinstance(gate, Mapping):
        config, folder, source = read_section(GateConfig, gate), None, ""
    else:
        config, folder, source = read_section_file(GateConfig, gate, "--gate", _BEGINS), Path(gate).parent, str(gate)
    names = list(dict.fromkeys(task for _, task, _ in _named(config) if task != GENERAL))
    prepared = prepare(find_tasks(names, "gate task", folder)) if names else []
    tasks = dict(zip(names, prepared, strict=True))
    every = metrics_of(prepared)
    metrics = {name: {m.name: m for m in every if m.task == each.task.name} for name, each in tasks.items()}
    metrics[GENERAL] = {metric.name: metric for metric in every if metric.task == GENERAL}
    problems = list(_missing(config, metrics))
    if problems:
        raise ConfigError(problems, source)
    return Gate(config, tasks, metrics)


def _named(config: GateConfig) -> Iterator[tuple[str, str, str]]:
    """Each check's place, task and metric."""
    for kind in ("better", "not_worse", "floors"):
        for number, check in enumerate(getattr(config, kind)):
            yield f"{kind}.{number}", check.task, check.metric


def _missing(config: GateConfig, metrics: Mapping[str, Mapping[str, Metric]]) -> Iterator[Problem]:
    for place, task, name in _named(config):
        known = metrics[task]
        if name not in known:
            of = "general text" if task == GENERAL else f"the task {task!r}"
            fix = nearest(name, known) or (
                "add `task: FILE.yaml`" if task == GENERAL else "add it to the task's scorers"
            )
            yield Problem(f"{place}.metric", f"{name!r} is not measured by {of}, which has {', '.join(known)}.", fix)
        elif place.startswith(("better", "not_worse")) and known[name].larger_is_better is None:
            message = f"{name!r} has no direction: neither more nor less of it is better"
            yield Problem(f"{place}.metric", message, "use another metric")
