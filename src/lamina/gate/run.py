"""`run_gate`: evaluates what is missing, checks it against the gate, and writes a record that names just this pair."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from lamina.config.tasks import GENERAL
from lamina.errors import ConfigError, Problem
from lamina.evaluation.gather import Prepared
from lamina.evaluation.result import unseen
from lamina.evaluation.store import EvaluationError, StoredEvaluation, read_evaluation
from lamina.evaluation.subjects import evaluate_subjects
from lamina.gate.checks import Evidence, Outcome, general_rows, statistical_checks, verdict_of
from lamina.gate.facts import fact_checks, latency_of
from lamina.gate.identity import Identity, identify_pair, names_in
from lamina.gate.settings import Gate, read_gate
from lamina.progress import Notify, Progress
from lamina.registry.evidence import Check, GateRecord, Side, Verdict, record_digest, write_record
from lamina.registry.names import is_reference
from lamina.registry.places import versions_in
from lamina.registry.registry import Registry
from lamina.runs import timestamp

CANDIDATE, CHAMPION = "candidate", "champion"


@dataclass(frozen=True)
class GateResult:
    """What a gate found.

    Attributes:
        verdict: `promote`, `hold` or `not_enough_rows`.
        checks: Each check, in the gate's order.
        record: What it found, for a registry.
        digest: The record's.
        path: The record's file.
        evaluations: What it rests on.
    """

    verdict: str
    checks: list[Outcome]
    record: GateRecord
    digest: str
    path: Path
    evaluations: list[StoredEvaluation]

    @property
    def rows_needed(self) -> int | None:
        """Rows that would decide every check that is undecided; None where none is, or no number of rows would."""
        counts = [check.rows_needed for check in self.checks if check.passed is None and check.rows_needed]
        return max(counts, default=None)

    def as_json(self) -> dict[str, Any]:
        """As plain data."""
        return {
            "verdict": self.verdict,
            "checks": [check.as_json() for check in self.checks],
            "rows_needed": self.rows_needed,
            "record": self.digest,
            "record_file": str(self.path),
            "candidate": self.record.candidate.as_json(),
            "against": self.record.against.as_json(),
            "evaluations": [{"folder": str(each.path), "digest": each.digest} for each in self.evaluations],
        }


@dataclass
class _Seen:
    """What evaluations say of the two, under the names CANDIDATE and CHAMPION.

    Attributes:
        rows: By what checks call a task.
        leakage: What the candidate's training saw, task by task.
        subject: The candidate, as the last evaluation stores it.
    """

    rows: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    leakage: list[dict[str, Any]] = field(default_factory=list)
    subject: dict[str, Any] = field(default_factory=dict)


def run_gate(
    candidate: str | Path,
    against: str | Path,
    gate: str | Path | Mapping[str, object],
    *,
    evaluations: Sequence[str | Path] = (),
    general: str | Path | None = None,
    model: str | None = None,
    out: str | Path | None = None,
    records: str | Path | None = None,
    registry: str | None = None,
    progress: Progress = lambda what, done, total: None,
    notify: Notify = lambda message: None,
) -> GateResult:
    """Applies a gate to a candidate.

    Args:
        candidate: A run, an adapter folder or a version in the registry.
        against: The champion: the same, a base, or `base` for the candidate's own.
        gate: A YAML file, or a mapping with the same structure.
        evaluations: Folders of evaluations of the two; what they do not hold is evaluated.
        general: A file of general text, instead of lamina's own, and of what stored evaluations were measured on.
        model: Another base than the one that adapters name.
        out: Folder of the evaluation of what is missing; not written where nothing is.
        records: Folder for the record; by default `gates` beside `out`, or beside the last evaluation.
        registry: Where versions are found and the record is stored too; by default the user's, if a version is named.
        progress: As for `evaluate_subjects`.
        notify: As for `evaluate_subjects`.

    Raises:
        ConfigError: A setting, a task or a metric does not exist, or the candidate is no adapter.
        EvaluationError: A stored evaluation was changed, or is of others.
        LaminaError: A subject cannot be loaded or evaluated.
    """
    with versions_in(registry):
        checked = read_gate(gate)
        if general is not None and not checked.needs_general:
            message = "has no effect: no check of the gate is of general text"
            fix = "add not_worse: [{metric: general_loss, margin: 0.02}] to the gate, or leave it out"
            raise ConfigError(Problem("--general", message, fix))
        pair = identify_pair(str(candidate), str(against), model, notify)
        _check_pair(*pair)
        seen, used = _Seen(), [read_evaluation(Path(path)) for path in evaluations]
        covered = {key for stored in used for key in _take(stored, pair, checked, seen)}
        if general is not None:
            seen.rows.pop(GENERAL, None)  # what is stored may be of another text
        missing = {key: each for key, each in checked.tasks.items() if key not in covered}
        lacks_general = checked.needs_general and GENERAL not in seen.rows
        if missing or lacks_general or not used:
            new = evaluate_subjects(
                [candidate],
                [each.task for each in missing.values()],
                against=against,
                general=general,
                forgetting=lacks_general,
                with_base=False,
                model=model,
                need_rows=False,
                out=out,
                progress=progress,
                notify=notify,
            )
            used.append(new)
            list(_take(new, pair, checked, seen))
        elif out is not None:
            notify(f"{out} is not written: the stored evaluations have all that the gate needs")
        latency = None
        if checked.config.limits.latency_seconds is not None:
            latency = _latency(str(candidate), checked, model, notify)
        outcomes = _outcomes(checked, pair, seen, latency)
        record = _record(checked, pair, outcomes, used, seen)
        place = used[-1].path if out is None else Path(out)
        path = write_record(record, Path(records) if records is not None else place.parent / "gates")
        if registry is not None or any(is_reference(each.ref) for each in pair):
            with Registry(registry, create=False) as opened:
                opened.store_record(record)
        return GateResult(record.verdict, outcomes, record, record_digest(record), path, used)


def _check_pair(candidate: Identity, champion: Identity) -> None:
    if candidate.adapter is None:
        message = f"{candidate.ref!r} is a base: a gate lets an adapter take another's place"
        raise ConfigError(Problem("CANDIDATE", message, "name a run, an adapter or a version"))
    if (candidate.adapter, candidate.base) == (champion.adapter, champion.base):
        message = f"{champion.ref!r} is the candidate itself, by its digest"
        raise ConfigError(Problem("--against", message, "name the adapter whose place it may take"))


def _take(stored: StoredEvaluation, pair: tuple[Identity, Identity], gate: Gate, seen: _Seen) -> Iterator[str]:
    """Takes what a stored evaluation has for the gate, and yields which of its tasks that is.

    Raises:
        EvaluationError: It is of others, or of other rows.
    """
    ours, theirs = names_in(stored, *pair)
    seen.subject = next(subject for subject in stored.subjects if subject["subject"] == ours)
    tasks = {task["name"]: task for task in stored.result["tasks"]}
    for key, prepared in gate.tasks.items():
        task = tasks.get(prepared.task.name)
        if task is None or key in seen.rows:
            continue
        _check_same(stored, task, prepared)
        seen.rows[key] = [_sided(row, ours, theirs) for row in stored.rows[prepared.task.name]]
        counts = stored.result["leakage"].get(ours, {}).get(prepared.task.name)
        seen.leakage += [] if counts is None else [counts]
        yield key
    if GENERAL in stored.rows and GENERAL not in seen.rows:
        rows = [_sided(row, ours, theirs) for row in stored.rows[GENERAL]]
        is_base = pair[1].adapter is None and pair[0].group == pair[1].group
        seen.rows[GENERAL] = [dict(row) for row in general_rows(rows, CHAMPION if is_base else None)]


def _check_same(stored: StoredEvaluation, task: Mapping[str, Any], prepared: Prepared) -> None:
    scorers = {scorer.name: scorer.digest for scorer in prepared.scorers}
    rows = [row["digest"] for row in stored.rows[prepared.task.name]]
    same_rows = rows == [row.digest for row in prepared.rows]
    if task["digest"] != prepared.task.digest or task["scorers"] != scorers or not same_rows:
        what = "rows" if not same_rows else "settings"
        raise EvaluationError(
            f"{stored.path}: the task {prepared.task.name!r} has other {what} now than when it was evaluated. "
            "Fix: leave it out, and what is missing is evaluated."
        )


def _sided(row: Mapping[str, Any], ours: str, theirs: str) -> dict[str, Any]:
    names = {ours: CANDIDATE, theirs: CHAMPION}
    return {
        **row,
        **{
            part: {names[name]: value for name, value in row[part].items() if name in names}
            for part in ("answers", "scores", "leaked")
        },
    }


def _outcomes(gate: Gate, pair: tuple[Identity, Identity], seen: _Seen, latency: float | None) -> list[Outcome]:
    rows = {key: unseen(seen.rows.get(key, [])) for key in (*gate.tasks, GENERAL)}
    titles = {key: each.task.name for key, each in gate.tasks.items()} | {GENERAL: GENERAL}
    evidence = Evidence(CANDIDATE, CHAMPION, rows, gate.metrics, titles)
    return [*statistical_checks(gate.config, evidence), *fact_checks(gate.config, seen.subject, seen.leakage, latency)]


def _latency(candidate: str, gate: Gate, model: str | None, notify: Notify) -> float:
    first = next(iter(gate.tasks.values()), None)
    if first is None:
        raise ConfigError(Problem("limits.latency_seconds", "needs a task whose rows are timed", "name one in a check"))
    return latency_of(candidate, first.rows, first.task.config.generation, model=model, notify=notify)


def _record(
    gate: Gate,
    pair: tuple[Identity, Identity],
    outcomes: Sequence[Outcome],
    used: Sequence[StoredEvaluation],
    seen: _Seen,
) -> GateRecord:
    rows = sorted(f"{key} {row['digest']}" for key, rows in seen.rows.items() for row in rows)
    return GateRecord(
        candidate=Side(pair[0].adapter, pair[0].base, pair[0].packed),
        against=Side(pair[1].adapter, pair[1].base, pair[1].packed),
        gate=gate.config.model_dump(mode="json"),
        gate_digest=gate.digest,
        checks=tuple(
            Check(each.name, each.passed, each.value, each.low, each.high, each.limit, each.rows_needed)
            for each in outcomes
        ),
        verdict=cast(Verdict, verdict_of(outcomes)),
        evaluations=tuple(stored.digest for stored in used),
        rows_digest="sha256:" + hashlib.sha256("\n".join(rows).encode()).hexdigest(),
        created=timestamp(),
    )
