"""Checkpoints: all that a run needs to go on as if it had never stopped.

    checkpoints/step-00000120/   adapter.safetensors  optimizer.safetensors  method.safetensors  state.json
                                 adapter_config.json  adapter_model.safetensors  lamina.json
    checkpoints/best-00000080/   adapter.safetensors  state.json
                                 adapter_config.json  adapter_model.safetensors  lamina.json

`adapter.safetensors` holds the tensors as they are trained. The files in the last lines of each are the adapter in the
form in which a finished one is saved, without probes, so that the folder can be used as an adapter by lamina and peft;
mostly the tensors are the same, and `adapter_model.safetensors` is a link to them.

A checkpoint is written aside and renamed, so it is whole or not there. `state.json` holds the digests of the other
files; one that does not match (a damaged disk) is passed over for the next older one. Nothing in it depends on how
many processes there are, and random numbers are a function of seed and step (`random.safetensors` is there for runs of
earlier versions). `state.json` also has the number of the
format, of which every version reads all up to its own; a checkpoint without one has format 1.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from lamina import files
from lamina.errors import NewerVersionError, RunError, check_format
from lamina.methods.shared.base import Hooks
from lamina.training.zero import ZeroEngine
from lamina.version import __version__

STATE_FILE = "state.json"
ADAPTER_TENSORS = "adapter.safetensors"
FORMAT = 1
_NAME = re.compile(r"^(step|best)-(\d{8})$")


@dataclass
class TrainState:
    """Where a run stands. Everything but the times decides what comes next.

    Attributes:
        step: Optimizer steps taken.
        tokens: Real tokens trained on.
        supervised_tokens: Supervised ones among them.
        skipped_steps: Steps whose gradient was not finite and that changed nothing.
        skipped_in_a_row: Those since the last good step.
        train_loss_first: Loss of the first step.
        train_loss_last: Loss of the latest step.
        eval_loss_first: Loss of the bare base, or of the adapter that training starts from, on the evaluation data.
        eval_metrics_first: The loss's own figures with it.
        eval_loss_last: Loss of the latest evaluation.
        eval_metrics_last: The loss's own figures with it.
        last_eval_step: Step of the latest evaluation; -1 before the first.
        best_step: Step of the best evaluation; -1 before the first.
        best_eval_loss: Its loss.
        best_eval_metrics: The loss's own figures with it.
        evals_without_gain: Evaluations since the last better one.
        loss_scale: Scale of the loss, in float16; else None.
        loss_scale_good_steps: Steps since it last changed.
        timed_tokens: Tokens of the steps that count for the speed (not the first of a process).
        timed_seconds: Their time.
        peak_memory_bytes: Largest so far, over all processes of the run.
        seeded_by_step: Whether random numbers are a function of seed and step. False for a run that an earlier version
            began, whose generators go on from step to step, and are in its checkpoints.
    """

    step: int = 0
    tokens: int = 0
    supervised_tokens: int = 0
    skipped_steps: int = 0
    skipped_in_a_row: int = 0
    train_loss_first: float | None = None
    train_loss_last: float | None = None
    eval_loss_first: float | None = None
    eval_loss_last: float | None = None
    last_eval_step: int = -1
    best_step: int = -1
    best_eval_loss: float | None = None
    evals_without_gain: int = 0
    loss_scale: float | None = None
    loss_scale_good_steps: int = 0
    timed_tokens: int = 0
    timed_seconds: float = 0.0
    peak_memory_bytes: int = 0
    eval_metrics_first: dict[str, float] = field(default_factory=dict)
    eval_metrics_last: dict[str, float] = field(default_factory=dict)
    best_eval_metrics: dict[str, float] = field(default_factory=dict)
    seeded_by_step: bool = True


@dataclass(frozen=True)
class Content:
    """What a checkpoint holds.

    Attributes:
        state: Where the run stood.
        adapter: The adapter's tensors.
        optimizer: The optimizer's, named `KEY/TENSOR`.
        method: The method's own.
        random: torch's generators, of a run that is not `seeded_by_step`.
    """

    state: TrainState
    adapter: dict[str, torch.Tensor]
    optimizer: dict[str, torch.Tensor]
    method: dict[str, torch.Tensor]
    random: dict[str, torch.Tensor]


WriteAdapter = Callable[[Path, Path], None]
"""Writes the files of the adapter as it is now: into which folder, and the file of its tensors there."""


def save_checkpoint(
    folder: Path,
    state: TrainState,
    tensors: Mapping[str, nn.Parameter],
    moments: Mapping[str, torch.Tensor],
    hooks: Hooks,
    device: torch.device,
    keep: int,
    write_adapter: WriteAdapter,
) -> Path:
    """Saves everything, then removes older checkpoints beyond the newest `keep`.

    Args:
        folder: Where the run's checkpoints are.
        state: Where the run stands.
        tensors: The tensors that are trained.
        optimizer: Over these.
        hooks: Of the method.
        random: The state of the random generators.
        keep: How many checkpoints stay.
        write_adapter: Writes the adapter as it is used.

    Raises:
        StorageError: Nothing was saved; earlier checkpoints are untouched.
    """
    path = checkpoint_path(folder, state.step)
    with files.new_folder(path) as aside:
        _save_tensors(aside / ADAPTER_TENSORS, tensors)
        _save_tensors(aside / "optimizer.safetensors", moments)
        _save_tensors(aside / "method.safetensors", hooks.state())
        if not state.seeded_by_step:
            _save_tensors(aside / "random.safetensors", random_state(device))
        _write_state(aside, state)
        write_adapter(aside, aside / ADAPTER_TENSORS)
    for old in _found(folder, "step")[keep:]:
        if old != path:
            shutil.rmtree(old, ignore_errors=True)
    for best in _found(folder, "best"):
        # Only now is a newer best one recorded in a whole checkpoint, so that older ones are not needed any more.
        if best.name != f"best-{state.best_step:08d}":
            shutil.rmtree(best, ignore_errors=True)
    return path


def save_best(
    folder: Path, state: TrainState, tensors: Mapping[str, nn.Parameter], write_adapter: WriteAdapter
) -> Path:
    """Saves the adapter of the best evaluation so far; the arguments are those of `save_checkpoint`."""
    path = folder / f"best-{state.step:08d}"
    with files.new_folder(path) as aside:
        _save_tensors(aside / ADAPTER_TENSORS, tensors)
        _write_state(aside, state)
        write_adapter(aside, aside / ADAPTER_TENSORS)
    return path


def load_best(folder: Path, step: int) -> dict[str, torch.Tensor]:
    """The adapter tensors of the best evaluation.

    Raises:
        RunError: They are not there or damaged.
    """
    path = folder / f"best-{step:08d}"
    if not _is_whole(path):
        raise RunError(f"{path}: the best checkpoint is missing or damaged. Fix: train again, or resume from a copy.")
    return load_file(path / ADAPTER_TENSORS)


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint, or None. A damaged one is passed over."""
    return next((path for path in _found(folder, "step") if _is_whole(path)), None)


def checkpoint_path(folder: Path, step: int) -> Path:
    """Where the checkpoint of a step is saved."""
    return folder / f"step-{step:08d}"


def checkpoint_step(path: Path) -> int:
    """The step that a checkpoint was saved at."""
    return int(path.name.rpartition("-")[2])


def load_checkpoint(path: Path) -> Content:
    """Reads a checkpoint.

    Raises:
        RunError: It holds no state that can be read.
        NewerVersionError: It has a format or a state that this version does not know.
    """
    state = _read_state(path)
    names = ("adapter", "optimizer", "method", *(() if state.seeded_by_step else ("random",)))
    parts = {name: load_file(path / f"{name}.safetensors") for name in names}
    return Content(state, parts["adapter"], parts["optimizer"], parts["method"], parts.get("random", {}))


@torch.no_grad()
def put_back(
    content: Content,
    path: Path,
    tensors: Mapping[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
    hooks: Hooks,
    device: torch.device,
    engine: ZeroEngine | None = None,
) -> TrainState:
    """Puts a checkpoint's content back into the adapter, the optimizer, the method, and torch's generators.

    Returns:
        Where the run stood.

    Raises:
        RunError: It holds other tensors than the run's adapter has.
    """
    if {n: t.shape for n, t in content.adapter.items()} != {n: p.shape for n, p in tensors.items()}:
        raise RunError(f"{path}: holds another adapter than the run's configuration makes. Fix: start a new run.")
    if engine is not None:
        engine.load(content.adapter, content.optimizer)
    for name, parameter in tensors.items() if engine is None else ():
        parameter.copy_(content.adapter[name])
        # AdamW keeps its step count on the CPU unless it is fused on a GPU, so each tensor goes where torch put it.
        own = {k.partition("/")[0]: value for k, value in content.optimizer.items() if k.partition("/")[2] == name}
        optimizer.state[parameter] = {key: value.to(parameter.device) for key, value in own.items()}
    hooks.load_state(content.method)
    if content.random:
        restore_random_state(content.random, device)
    return content.state


def random_state(device: torch.device) -> dict[str, torch.Tensor]:
    """Returns torch's generators as they are now."""
    states = {"cpu": torch.get_rng_state().clone()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device).cpu()
    return states


def restore_random_state(random: Mapping[str, torch.Tensor], device: torch.device) -> None:
    """Puts torch's generators back."""
    torch.set_rng_state(random["cpu"])
    if device.type == "cuda" and "cuda" in random:
        torch.cuda.set_rng_state(random["cuda"], device)


def optimizer_tensors(tensors: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """The optimizer's state, named `KEY/TENSOR`."""
    # Adafactor counts its steps in a number, and goes on counting as well in the tensor that comes back.
    return {
        f"{key}/{name}": value if isinstance(value, torch.Tensor) else torch.tensor(value)
        for name, parameter in tensors.items()
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def _save_tensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    stored = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    save_file(stored, path, metadata={"format": "pt"})


def _write_state(folder: Path, state: TrainState) -> None:
    digests = {path.name: files.sha256_file(path) for path in sorted(folder.glob("*.safetensors"))}
    about = {"format": FORMAT, "lamina": __version__, "state": asdict(state), "sha256": digests}
    files.write_json(folder / STATE_FILE, about)


def _read_state(folder: Path) -> TrainState:
    path = folder / STATE_FILE
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
        written_by = str(about.get("lamina", ""))
        check_format(path, about.get("format", 1), FORMAT, written_by)
        unknown = sorted(about["state"].keys() - {each.name for each in fields(TrainState)})
        if unknown:
            raise NewerVersionError(path, written_by, f"its state has {', '.join(unknown)}, not known here")
        return TrainState(**{"seeded_by_step": False, **about["state"]})
    except NewerVersionError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunError(f"{path}: is not readable ({error}). Fix: delete this checkpoint, then resume.") from None


def _found(folder: Path, kind: str) -> list[Path]:
    """Checkpoints of a kind, newest first."""
    if not folder.is_dir():
        return []
    named = [path for path in folder.iterdir() if (match := _NAME.match(path.name)) and match.group(1) == kind]
    return sorted(named, key=lambda path: path.name, reverse=True)


def _is_whole(path: Path) -> bool:
    try:
        about: dict[str, Any] = json.loads((path / STATE_FILE).read_text(encoding="utf-8"))
        return all(files.sha256_file(path / name) == digest for name, digest in about["sha256"].items())
    except (OSError, ValueError, KeyError):
        return False
