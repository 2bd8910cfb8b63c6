"""The run directory: where everything about one run lies, and who may write there."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout

from lamina import files
from lamina.config import Config, load_config, resolved_values
from lamina.errors import RunError, StorageError

ADAPTER_FOLDER = "adapter"


@dataclass(frozen=True)
class Run:
    """A run on disk.

    Attributes:
        path: Its directory.
    """

    path: Path

    @property
    def config_path(self) -> Path:
        """The resolved configuration."""
        return self.path / "config.yaml"

    @property
    def manifest_path(self) -> Path:
        """Versions, hardware, digests, and how the run ended."""
        return self.path / "manifest.json"

    @property
    def metrics_path(self) -> Path:
        """One event a line."""
        return self.path / "metrics.jsonl"

    @property
    def data_report_path(self) -> Path:
        """What became of every row."""
        return self.path / "data_report.json"

    @property
    def quantization_report_path(self) -> Path:
        """How far each quantized weight is from what it was; only there with `quantization`."""
        return self.path / "quantization_report.json"

    @property
    def checkpoints(self) -> Path:
        """Checkpoints, each a folder that is whole or not there."""
        return self.path / "checkpoints"

    @property
    def adapter(self) -> Path:
        """The finished adapter."""
        return self.path / ADAPTER_FOLDER

    @property
    def config(self) -> Config:
        """The configuration that the run was started with."""
        return load_config(self.config_path)

    @property
    def manifest(self) -> dict[str, Any]:
        """The manifest; empty if the run has not got that far."""
        try:
            return json.loads(self.manifest_path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}

    @property
    def summary(self) -> dict[str, Any] | None:
        """The figures of a finished run (what `lamina train --json` prints); None before that."""
        return self.manifest.get("summary")

    def events(self) -> Iterator[dict[str, Any]]:
        """The events written so far, the whole lines of `metrics.jsonl`."""
        with contextlib.suppress(FileNotFoundError):
            for line in self.metrics_path.read_text(encoding="utf-8").split("\n")[:-1]:
                with contextlib.suppress(ValueError):
                    yield json.loads(line)


def open_run(path: str | Path) -> Run:
    """A run that exists.

    Raises:
        RunError: There is none at `path`.
    """
    run = Run(Path(path))
    if not run.config_path.is_file():
        raise RunError(f"{path}: is no run directory (it has no config.yaml). Fix: check the path.")
    return run


def start_run(config: Config, resume: bool) -> Run:
    """Makes the run directory, or takes up one that is there.

    Raises:
        RunError: A run is there already and `resume` is false, or it was started with another configuration.
        StorageError: The directory cannot be written.
    """
    run = Run(Path(config.output_dir))
    begun = run.manifest_path.is_file()  # written when model, data and adapter were found to fit
    if begun and run.config_path.is_file():
        if not resume:
            raise RunError(
                f"{run.path}: already holds a run. Fix: add --resume to go on with it, choose another output_dir, or "
                "delete the directory."
            )
        _same_config(run, config)
    elif run.path.is_dir() and _foreign_files(run):
        raise RunError(f"{run.path}: is a folder with other files in it and no run. Fix: choose another output_dir.")
    else:
        text = yaml.safe_dump(resolved_values(config), sort_keys=False, allow_unicode=True)
        files.write_text(run.config_path, text)
    return run


@contextlib.contextmanager
def exclusive(run: Run) -> Iterator[None]:
    """Keeps other processes from training into the same run. The lock goes with the process, however it ends.

    Raises:
        RunError: Another process holds it.
    """
    lock = FileLock(run.path / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise RunError(f"{run.path}: another process is training into this run. Fix: wait for it or stop it.") from None
    except OSError as error:
        raise StorageError.wrap(error, run.path, "locking the run") from error
    try:
        yield
    finally:
        lock.release()


def _foreign_files(run: Run) -> bool:
    """Whether the folder holds anything that a run which never began would not have left."""
    own = {run.config_path.name, run.metrics_path.name, run.checkpoints.name}
    return any(entry.name not in own and not entry.name.startswith(".") for entry in run.path.iterdir())


def _same_config(run: Run, config: Config) -> None:
    before, now = _flat(run.config.model_dump(mode="json")), _flat(config.model_dump(mode="json"))
    changed = [key for key in sorted(before.keys() | now.keys()) if before.get(key) != now.get(key)]
    if changed:
        shown = "; ".join(f"{key}: {before.get(key)!r} -> {now.get(key)!r}" for key in changed[:5])
        raise RunError(
            f"{run.path}: was started with another configuration, so it cannot be resumed with this one ({shown}). "
            "Fix: use the run's own config.yaml, or choose another output_dir."
        )


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict) or not value:
        return {prefix: value}
    return {k: v for key, item in value.items() for k, v in _flat(item, f"{prefix}.{key}".lstrip(".")).items()}
