"""Checks of what a candidate is rather than of what it answers: certificate, leakage, license, latency and size."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lamina.config.gate import GateConfig
from lamina.config.tasks import GenerationSettings
from lamina.engine.generator import Request
from lamina.errors import ConfigError, Problem
from lamina.evaluation.asking import sampling_of, turns_of
from lamina.evaluation.entries import find_entries
from lamina.evaluation.hosts import open_host
from lamina.evaluation.tasks import TaskRow
from lamina.gate.checks import Outcome
from lamina.progress import Notify

# Rows that are asked one by one to find how long an answer takes, after one that warms up.
TIMED_ROWS = 8


def fact_checks(
    gate: GateConfig, subject: Mapping[str, Any], leakage: Sequence[Mapping[str, Any]], latency: float | None
) -> Iterator[Outcome]:
    """Yields the outcome of each such check that the gate has.

    Args:
        gate: The gate.
        subject: The candidate, as an evaluation stores it.
        leakage: What its training saw of each task.
        latency: Median seconds of an answer; None where the gate does not limit it.
    """
    if gate.certificate == "required":
        note = {True: "", False: "its probes do not give the logits of training", None: "it has no probes"}
        yield Outcome("certificate", subject["certificate"] is True, note=note[subject["certificate"]])
    if gate.leakage != "any":
        yield _leakage(gate.leakage, leakage)
    if gate.license is not None:
        found = subject["license"]
        allowed = [name.lower() for name in gate.license]
        note = f"the base's model card names {found}" if found else "the base's folder has no card that names one"
        yield Outcome(f"license: {', '.join(gate.license)}", found is not None and found.lower() in allowed, note=note)
    sizes, limits = subject["sizes"], gate.limits
    if limits.latency_seconds is not None and latency is not None:
        yield _limit("latency in seconds", latency, limits.latency_seconds)
    if limits.adapter_mb is not None:
        yield _limit("adapter in MB", sizes.get("adapter_bytes", 0) / 1e6, limits.adapter_mb)
    if limits.memory_gib is not None:
        held = sizes.get("base_bytes", 0) + sizes.get("adapter_memory_bytes", 0)
        yield _limit("memory in GiB", held / 2**30, limits.memory_gib)


def latency_of(
    ref: str,
    rows: Sequence[TaskRow],
    settings: GenerationSettings,
    *,
    model: str | None = None,
    notify: Notify = lambda message: None,
) -> float:
    """Median seconds of an answer to one row at a time.

    Raises:
        LaminaError: The subject cannot be loaded, or a row cannot be asked.
    """
    entries = find_entries([ref], model=model, with_base=False, notify=notify)
    if entries[0].kind == "url" or not rows:
        raise ConfigError(Problem("limits.latency_seconds", "needs a subject that runs here, and rows", "leave it out"))
    with open_host(entries, model=model, notify=notify) as host:
        engine, speaker, times = host.engine, host.members[0].speaker, list[float]()
        for row in (rows[0], *rows[:TIMED_ROWS]):
            if speaker.template is None or engine is None:
                continue
            prompt = speaker.template.render(turns_of(row, ()), row.tools, True, dict(row.template_kwargs) or None)
            sampling = sampling_of(settings, row.number, speaker.template)
            begun = time.monotonic()
            engine.generate([Request(prompt=prompt, adapter=speaker.adapter, sampling=sampling)])
            times.append(time.monotonic() - begun)
    return statistics.median(times[1:])


def _leakage(allowed: str, leakage: Sequence[Mapping[str, Any]]) -> Outcome:
    exact = sum(counts["exact"] for counts in leakage)
    near = sum(counts["near"] for counts in leakage)
    unknown = [counts["unknown"] for counts in leakage if counts["unknown"]]
    seen = exact + (near if allowed == "none" else 0)
    note = f"training saw {exact} prompts, and {near} nearly the same"
    if unknown:
        note += f"; it is not certain what it saw: {unknown[0]}"
    elif not leakage:
        note = "no task was evaluated"
    return Outcome(f"leakage: {allowed}", not seen and not unknown, float(seen), limit=0.0, note=note)


def _limit(name: str, value: float, limit: float) -> Outcome:
    return Outcome(f"limit: {name}", value <= limit, value, limit=limit)
