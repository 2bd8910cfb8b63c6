"""The run directory: everything about one run, who may write to it, and how the run ended.

    manifest.json   `format` of the directory; where it was started; versions, hardware, digests; and `status`:
                    running, finished, interrupted (a signal), failed (an error), or killed (no process runs it)

A run directory can be moved: recorded paths are those at the time it was started (`config/places.py`).
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar, overload

import yaml
from filelock import FileLock, Timeout

from lamina import files
from lamina.charts import Chart, Table
from lamina.config import Config, load_config, resolved_values
from lamina.config.places import (
    CONFIG_FILE,
    MANIFEST_FILE,
    Origin,
    made_absolute,
    map_paths,
    read_origin,
    start_folders,
)
from lamina.errors import ConfigError, Interrupted, NewerVersionError, Problem, RunError, StorageError, check_format
from lamina.runs.curves import plot_events, state_of, tabulate
from lamina.runs.events import Event, event_lines
from lamina.runs.flat import flatten
from lamina.runs.lock import is_held
from lamina.runs.manifest import Manifest
from lamina.runs.summary import Summary
from lamina.version import __version__

ADAPTER_FOLDER = "adapter"
CHECKPOINT_FOLDER = "checkpoints"
LOCK_FILE = ".lock"
FORMAT = 1

E = TypeVar("E", bound=Event)

# A process that only checks whether a run is locked holds the lock for a moment.
_LOCK_SECONDS = 0.5


@dataclass(frozen=True, repr=False)
class Run:
    """A run on disk.

    Attributes:
        path: The run directory.
    """

    path: Path

    def __repr__(self) -> str:
        try:
            return f"<Run {self.path}: {state_of(self.status, self.summary)}>"
        except (RunError, NewerVersionError):
            return f"<Run {self.path}: unreadable>"

    @property
    def config_path(self) -> Path:
        """The resolved configuration, with all defaults filled in."""
        return self.path / CONFIG_FILE

    @property
    def manifest_path(self) -> Path:
        """The manifest: versions, hardware, digests, and how the run ended."""
        return self.path / MANIFEST_FILE

    @property
    def metrics_path(self) -> Path:
        """The event log, one event per line."""
        return self.path / "metrics.jsonl"

    @property
    def data_report_path(self) -> Path:
        """The data report: what happened to every row."""
        return self.path / "data_report.json"

    @property
    def quantization_report_path(self) -> Path:
        """The error of each quantized weight; only with `quantization`."""
        return self.path / "quantization_report.json"

    @property
    def checkpoints(self) -> Path:
        """The checkpoints; each folder is complete or absent."""
        return self.path / CHECKPOINT_FOLDER

    @property
    def inputs(self) -> Path:
        """Rows and weights that were in memory when the run was started; each name has a digest of its content."""
        return self.path / "inputs"

    @property
    def adapter(self) -> Path:
        """The finished adapter."""
        return self.path / ADAPTER_FOLDER

    @property
    def start(self) -> Path:
        """A copy of the adapter that training started from; only with `method.from`."""
        return self.path / "start"

    @property
    def config(self) -> Config:
        """The configuration that the run was started with, with its paths resolved."""
        return load_config(self.config_path)

    @property
    def manifest(self) -> Manifest:
        """What is recorded of the run; nothing before it was started.

        Raises:
            RunError: The manifest is damaged.
            NewerVersionError: The manifest has a format that this version does not know.
        """
        content = self._read_manifest()
        try:
            return Manifest.from_json(content)
        except (ValueError, AttributeError) as error:
            raise self._unreadable(error) from None

    @property
    def begun(self) -> bool:
        """Whether the run got past its start-up checks (model, data and adapter fit), so that it can be resumed."""
        return self.manifest.base is not None

    @property
    def summary(self) -> Summary | None:
        """The figures of a finished run (the output of `lamina train --json`); None for other runs."""
        summary = self.manifest.summary
        return summary and replace(summary, run=str(self.path), adapter=str(self.adapter))

    @property
    def scores(self) -> dict[str, dict[str, float]] | None:
        """The means of the metrics that training was given: name -> `base` and `adapter`; None without metrics."""
        return self._read_manifest().get("scores")

    @property
    def status(self) -> str | None:
        """`running`, `finished`, `interrupted`, `failed` or `killed`; None before the start."""
        status = self.manifest.status
        return "killed" if status == "running" and not is_held(self.path / LOCK_FILE) else status

    @property
    def resume_command(self) -> str:
        """The command that resumes the run, from any working directory."""
        return f"lamina train {shlex.quote(os.path.abspath(self.config_path))} --resume"  # noqa: PTH100

    def record(self, **facts: Any) -> None:
        """Writes facts to the manifest, and replaces those with the same name; None removes one.

        Args:
            facts: Plain data, as `Manifest.as_json` gives it.

        Raises:
            StorageError: The manifest cannot be written.
        """
        manifest = {**self._read_manifest(), **facts}
        files.write_json(self.manifest_path, {name: fact for name, fact in manifest.items() if fact is not None})

    @overload
    def events(self) -> Iterator[Event]: ...
    @overload
    def events(self, kind: type[E]) -> Iterator[E]: ...
    def events(self, kind: type[Event] = Event) -> Iterator[Event]:
        """Returns the events written so far, from the complete lines of `metrics.jsonl`; of one kind, if given.

        Raises:
            RunError: A line is not an event.
        """
        return (event for _, event in event_lines(self.metrics_path) if isinstance(event, kind))

    def plot(self, metric: str = "loss") -> Chart:
        """Draws a metric over the steps, which a notebook shows; `run.plot().save("loss.svg")` writes it.

        Args:
            metric: `loss` for the losses of training and evaluation, or another metric of the log, such as
                `learning_rate` or `grad_norm`.

        Raises:
            ConfigError: The run has no such metric.
            RunError: The log is damaged.
        """
        return plot_events(list(self.events()), metric, str(self.path))

    def table(self) -> Table:
        """Lists the evaluations, with the training loss since the one before; steps, if there are no evaluations.

        Raises:
            RunError: The log is damaged.
        """
        return tabulate(list(self.events()))

    def _read_manifest(self) -> dict[str, Any]:
        """Returns the manifest as plain data, including unknown fields of newer versions; empty if there is none."""
        try:
            manifest = json.loads(self.manifest_path.read_text(encoding="utf-8"))
            check_format(self.manifest_path, manifest.get("format", 1), FORMAT, str(manifest.get("lamina", "")))
        except FileNotFoundError:
            return {}
        except NewerVersionError:
            raise
        except (ValueError, AttributeError) as error:
            raise self._unreadable(error) from None
        return manifest

    def _unreadable(self, error: Exception) -> RunError:
        return RunError(f"{self.manifest_path}: is not readable ({error}). Fix: put back a copy of it.")


def open_run(path: str | Path) -> Run:
    """Opens an existing run. A run whose process was killed is recorded as killed.

    Raises:
        RunError: There is no run at `path`.
    """
    run = Run(Path(path))
    if not run.config_path.is_file():
        raise RunError(f"{path}: is no run directory (it has no config.yaml). Fix: check the path.")
    if run.status == "killed":
        with contextlib.suppress(RunError, StorageError), exclusive(run):  # RunError: another process has resumed it
            if run.manifest.status == "running":
                run.record(status="killed")
    return run


def check_start(config: Config, resume: bool) -> None:
    """Checks that a run can be started or resumed in `output_dir`. Writes nothing.

    Raises:
        RunError: There already is a run and `resume` is false, or it was started with another configuration.
        ConfigError: There is no run, and `resume` is true.
    """
    run = Run(Path(config.output_dir))
    if _is_run(run):
        if run.begun and not resume:
            raise RunError(
                f"{run.path}: already holds a run ({run.status}). Fix: add --resume to go on with it, choose another "
                "output_dir, or delete the directory."
            )
        if run.begun:
            moved_places(run, config)
        return
    if resume:
        message = f"finds no run to go on with in {run.path.resolve()}."
        fix = (
            "leave it out to start one; if the run lies elsewhere, name its own configuration: lamina train "
            "FOLDER/config.yaml --resume"
        )
        raise ConfigError(Problem("--resume", message, fix))
    if run.path.is_dir() and _foreign_files(run):
        raise RunError(f"{run.path}: is a folder with other files in it and no run. Fix: choose another output_dir.")


def start_run(config: Config, resume: bool) -> Run:
    """Starts a run in `output_dir`, or resumes the run there. Hold `exclusive` meanwhile.

    Raises:
        RunError, ConfigError: As for `check_start`.
        StorageError: The directory cannot be written.
    """
    check_start(config, resume)
    run = Run(Path(config.output_dir))
    if not run.begun:
        now = {"format": FORMAT, "lamina": __version__, "status": "running", "started": timestamp()}
        files.write_json(run.manifest_path, now | _places(run, None))
        _write_config(run, resolved_values(config))
    return run


def moved_places(run: Run, config: Config) -> list[str]:
    """Returns the fields whose paths differ from those that the run was started with.

    Whether their content is the same is checked by digest after reading it.

    Raises:
        RunError: Another setting differs.
    """
    before, now = run.config, config
    (rest_before, places_before), (rest_now, places_now) = _taken_apart(before), _taken_apart(now)
    keys = sorted(rest_before.keys() | rest_now.keys())
    changed = [key for key in keys if rest_before.get(key) != rest_now.get(key)]
    if changed:
        was, is_now = flatten(before.model_dump(mode="json")), flatten(now.model_dump(mode="json"))
        shown = "; ".join(f"{key}: {was.get(key)!r} -> {is_now.get(key)!r}" for key in changed[:5])
        raise RunError(
            f"{run.path}: was started with another configuration, so it cannot be resumed with this one ({shown}). "
            "Fix: use the run's own config.yaml, or choose another output_dir."
        )
    pairs = zip(places_before, places_now, strict=True)
    return sorted({field for (field, place), (_, other) in pairs if place != other})


def comparable_settings(config: Config) -> dict[str, str]:
    """Returns the settings by dotted name that all processes of a run must have the same: all but its paths, whose
    content is compared."""
    return {name: json.dumps(value) for name, value in _taken_apart(config)[0].items()}


def keep_places(run: Run, config: Config) -> dict[str, str]:
    """Records where a resumed run is now, and its new paths.

    Returns:
        Facts for the manifest.

    Raises:
        StorageError: The configuration cannot be written.
    """
    if moved_places(run, config):
        _write_config(run, map_paths(resolved_values(config), lambda field, path: made_absolute(path)))
    return _places(run, read_origin(run.path))


def _places(run: Run, origin: Origin | None) -> dict[str, str]:
    """Returns where a run is, and the folder that its relative paths start from."""
    folders = start_folders(run.path, origin) or [Path.cwd()]
    directory = next((folder for folder in folders if folder.is_dir()), folders[0])
    return {"path": str(run.path.resolve()), "directory": str(directory)}


@contextlib.contextmanager
def exclusive(run: Run) -> Iterator[None]:
    """Keeps other processes from training in the run directory. The lock is released when this process ends.

    Raises:
        RunError: Another process holds the lock.
        StorageError: The directory cannot be created or written.
    """
    lock = FileLock(run.path / LOCK_FILE)
    try:
        run.path.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=_LOCK_SECONDS)
    except Timeout:
        raise RunError(f"{run.path}: another process is training into this run. Fix: wait for it or stop it.") from None
    except OSError as error:
        raise StorageError.wrap(error, run.path, "locking the run") from error
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def recorded(run: Run) -> Iterator[None]:
    """Records in the manifest that the run is running and, if the block fails, how it ended."""
    run.record(status="running", ended=None, error=None)
    try:
        yield
    except (Interrupted, KeyboardInterrupt):
        _record_end(run, "interrupted")
        raise
    except Exception as error:
        _record_end(run, "failed", error=f"{type(error).__name__}: {error}")
        raise


def run_of(folder: Path) -> Run | None:
    """The run that an adapter folder is part of, as its adapter or as a checkpoint; None for any other folder."""
    run = Run(folder.parent if folder.name == ADAPTER_FOLDER else folder.parent.parent)
    is_part = folder in (run.adapter, run.checkpoints / folder.name)
    return run if is_part and run.config_path.is_file() else None


def timestamp() -> str:
    """Returns the present time in the format of manifests."""
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")


def _record_end(run: Run, status: str, **facts: Any) -> None:
    if run.manifest.status != "finished":
        with contextlib.suppress(StorageError):  # on a full disk; the error that ended the run matters more
            run.record(status=status, ended=timestamp(), **facts)


def _write_config(run: Run, values: Mapping[str, Any]) -> None:
    files.write_text(run.config_path, yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True))


def _is_run(run: Run) -> bool:
    return run.config_path.is_file() and (run.manifest_path.is_file() or run.metrics_path.is_file())


def _foreign_files(run: Run) -> bool:
    """Returns whether the folder contains anything other than what a run leaves that stopped during start-up."""
    own = {run.metrics_path.name, run.checkpoints.name, run.inputs.name, "tensorboard", "wandb"}
    if run.manifest.lamina is not None:
        own.add(run.manifest_path.name)  # and there is no configuration yet
    return any(entry.name not in own and not entry.name.startswith(".") for entry in run.path.iterdir())


def _taken_apart(config: Config) -> tuple[dict[str, Any], list[tuple[str, str]]]:
    """Returns a run's settings by dotted name, without its paths; and its paths, which may differ on resuming."""
    places = [("model", made_absolute(config.model))]

    def take(field: str, path: str) -> str:
        places.append((field, made_absolute(path)))
        return ""

    values = config.model_dump(mode="json", exclude={"model", "output_dir", "distributed"})
    return flatten(map_paths(values, take)), places
