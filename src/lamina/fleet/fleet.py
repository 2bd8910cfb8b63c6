"""`lamina fleet run`: trains several configurations, and gathers what came out into one table.

    OUT/configs/NAME.yaml, logs/NAME.log   the configuration and the log of each task
    OUT/fleet.json                         the table
    OUT/slurm/                             what submitit keeps, with `--on slurm`

Each run has a run directory of its own, as from `lamina train`: OUT/runs/NAME, or the `output_dir` of its file.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from lamina import files
from lamina.config import Config, load_config, resolved_values
from lamina.config.places import CONFIG_FILE
from lamina.errors import ConfigError, LaminaError, Problem
from lamina.fleet.executor import Placement, start_executor
from lamina.fleet.pool import Result, run_tasks
from lamina.fleet.task import Task
from lamina.progress import Notify
from lamina.runs import Run, moved_places
from lamina.runs.summary import Summary
from lamina.signals import stop_on_signals

REPORT_FILE = "fleet.json"
_GIB = 2**30


@dataclass(frozen=True)
class Member:
    """A configuration of a fleet.

    Attributes:
        name: Its name, in the table and of its files.
        config: The configuration, with its run directory.
    """

    name: str
    config: Config


@dataclass(frozen=True)
class Row:
    """What came out of one configuration. Results are None until they are known.

    Attributes:
        name: Its name.
        status: `waiting`, `finished`, or `failed`.
        run: Its run directory.
        seconds: Time of all attempts; None for a run that was not trained by this fleet.
        retries: How often it was lost and resumed.
        hosts: The machine of each attempt.
        threads: Number of threads of its process.
        steps: Number of optimizer steps.
        train_loss_first, train_loss_last: Losses of the first and of the last step.
        eval_loss_first, eval_loss: Evaluation losses of the bare base and of the adapter.
        peak_memory_bytes: Peak memory of the training process.
        adapter_digest: Digest of the adapter.
        error: Why it failed.
    """

    name: str
    status: Literal["waiting", "finished", "failed"]
    run: str
    seconds: float | None = None
    retries: int = 0
    hosts: list[str] = field(default_factory=list)
    threads: int | None = None
    steps: int | None = None
    train_loss_first: float | None = None
    train_loss_last: float | None = None
    eval_loss_first: float | None = None
    eval_loss: float | None = None
    peak_memory_bytes: int | None = None
    adapter_digest: str | None = None
    error: str | None = None


@dataclass(frozen=True)
class FleetReport:
    """The table.

    Attributes:
        settings: The executor, the number of tasks at once, and the threads and GPUs of each.
        rows: One for each configuration, in the given order.
    """

    settings: dict[str, Any]
    rows: list[Row]

    @property
    def failed(self) -> list[Row]:
        """The rows of failed configurations."""
        return [row for row in self.rows if row.status == "failed"]

    def as_json(self) -> dict[str, Any]:
        """Converts to plain data."""
        return {
            "settings": self.settings,
            "runs": [asdict(row) for row in self.rows],
            "failed": [row.name for row in self.failed],
        }


def build_members(paths: Sequence[str], overrides: Sequence[str], out: Path | None) -> list[Member]:
    """Reads and checks the configurations of a fleet.

    Args:
        paths: YAML files.
        overrides: `key=value` strings, for all of them.
        out: The fleet's folder, in which the run directories are; None for those of the files.

    Raises:
        ConfigError: With the problems of all files; nothing was run.
    """
    problems, members = [], []
    for path, name in zip(paths, _names(paths), strict=True):
        try:
            config = load_config(path, overrides)
        except ConfigError as error:
            problems += [Problem(f"{path}: {p.field}", p.message, p.fix) for p in error.problems]
            continue
        if out is not None:
            config = config.model_copy(update={"output_dir": str(out / "runs" / name)})
        members.append(Member(name, config))
    places: dict[Path, str] = {}
    for member in members:
        run = Path(member.config.output_dir).resolve()
        if run in places:
            message = f"{places[run]} and {member.name} both train into {member.config.output_dir}"
            problems.append(Problem("output_dir", message, "give each a folder of its own, or use --out"))
        places[run] = member.name
        problems += _changed_since(member)
    if problems:
        raise ConfigError(problems)
    return members


def run_fleet(
    members: Sequence[Member], out: str | Path, placement: Placement, notify: Notify = lambda message: None
) -> FleetReport:
    """Trains the members of a fleet, and writes `fleet.json` into `out` whenever one ends.

    Args:
        members: From `build_members`.
        out: The fleet's folder.
        placement: Where they run, and how many at once.
        notify: Called with messages on the progress.

    Raises:
        ConfigError: The executor is unknown or not installed.
        Interrupted: A signal came; runs are kept, and resume when this is called again.
        FleetError, StorageError: Nothing can be started.
    """
    out = Path(out)
    before = _earlier(out / REPORT_FILE)
    rows = {each.name: Row(each.name, "waiting", each.config.output_dir) for each in members}
    with start_executor(placement, out) as executor, stop_on_signals() as stop:
        settled = placement.settled(executor, len(members))
        notify(
            f"{len(members)} runs on {settled.on}, {settled.jobs} at once, {settled.resources.cpus} "
            f"{'thread' if settled.resources.cpus == 1 else 'threads'} each"
        )
        report = FleetReport(settled.as_json(), list(rows.values()))
        tasks = [training_task(each.name, each.config, out) for each in members]
        for result in run_tasks(tasks, executor, settled, notify, stop):
            name = result.task.name
            rows[name] = _row(rows[name], result, before.get(name))
            if not result.before:
                notify(told(result))
            report = FleetReport(settled.as_json(), list(rows.values()))
            files.write_json(out / REPORT_FILE, report.as_json())
    return report


def training_task(name: str, config: Config, folder: Path, stem: str = "") -> Task:
    """Writes a configuration into a fleet's folder, and returns the task that trains it.

    Args:
        name: The task's name.
        config: The configuration, with its run directory.
        folder: The fleet's folder.
        stem: Name of its files; by default the task's.
    """
    stem, folder = stem or name, folder.resolve()
    path = folder / "configs" / f"{stem}.yaml"
    files.write_text(path, yaml.safe_dump(resolved_values(config), sort_keys=False, allow_unicode=True))
    arguments = ("-m", "lamina", "train", str(path), "--json")
    log, run = folder / "logs" / f"{stem}.log", Path(config.output_dir).resolve()
    return Task(name, arguments, log, Path.cwd(), run)


def told(result: Result) -> str:
    """Says in a line how a training task ended."""
    name = result.task.name
    if result.ended.how != "done":
        return f"{name}: failed: {result.ended.message}"
    summary = Summary.from_json(result.ended.printed)
    loss = "" if summary.eval_loss is None else f"eval loss {summary.eval_loss:.4f}, "
    return f"{name}: {loss}peak {summary.peak_memory_bytes / _GIB:.2f} GiB ({result.seconds:.0f} s)"


def _row(row: Row, result: Result, before: dict[str, Any] | None) -> Row:
    facts: dict[str, Any] = asdict(row) | {
        "seconds": round(result.seconds, 3),
        "retries": result.retries,
        "hosts": list(result.hosts),
    }
    if result.ended.how != "done":
        return Row(**facts | {"status": "failed", "error": result.ended.message})
    summary = Summary.from_json(result.ended.printed)
    if result.before:  # what is known of its attempts is in the table of the fleet that trained it
        earlier = before if before and before.get("adapter_digest") == summary.adapter_digest else {}
        facts |= {"seconds": earlier.get("seconds"), "retries": earlier.get("retries", 0)}
        facts |= {"hosts": earlier.get("hosts", [])}
    known: dict[str, Any] = {
        "status": "finished",
        "threads": Run(Path(row.run)).manifest.threads,
        "steps": summary.steps,
        "train_loss_first": summary.train_loss_first,
        "train_loss_last": summary.train_loss_last,
        "eval_loss_first": summary.eval_loss_first,
        "eval_loss": summary.eval_loss,
        "peak_memory_bytes": summary.peak_memory_bytes,
        "adapter_digest": summary.adapter_digest,
    }
    return Row(**facts | known)


def _earlier(path: Path) -> dict[str, dict[str, Any]]:
    """Returns the rows of an earlier table by name, as plain data; nothing if there is none."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        return {row["name"]: row for row in json.loads(path.read_text(encoding="utf-8"))["runs"]}
    return {}


def _names(paths: Sequence[str]) -> list[str]:
    """Names each file by its last name, or with those of folders above it where that is the same for two.

    >>> _names(["a/run.yaml", "b/run.yaml", "small.yaml", "runs/x/config.yaml"])
    ['a-run', 'b-run', 'small', 'x']
    """
    parts = []
    for path in map(Path, paths):
        own = path.absolute().with_suffix("").parts
        parts.append(own[:-1] if path.name == CONFIG_FILE and len(own) > 2 else own)
    twice = sorted({str(path) for path, own in zip(paths, parts, strict=True) if parts.count(own) > 1})
    if twice:
        raise ConfigError(Problem("CONFIG", f"{', '.join(twice)}: the same configuration twice", "give it once"))
    found = []
    for own in parts:
        length = next(n for n in range(1, len(own) + 1) if [other[-n:] for other in parts].count(own[-n:]) == 1)
        found.append("-".join(part.strip("/") for part in own[-length:]))
    return found


def _changed_since(member: Member) -> list[Problem]:
    """Reports an existing run with other settings, which this configuration cannot go on with."""
    run = Run(Path(member.config.output_dir))
    try:
        if run.config_path.is_file() and run.begun:
            moved_places(run, member.config)
    except LaminaError as error:
        return [Problem(f"{member.name}: output_dir", str(error))]
    return []
