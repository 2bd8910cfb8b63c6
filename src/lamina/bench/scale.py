"""`bench scale`: the same run in one, two, four processes, measured here; and in 8 to 512 on paper.

Each number of processes trains a few steps of the user's configuration by `lamina train --nproc`. The paper's figures
come from `training/plan/scale.py`, with the weights of this model and adapter.
"""

from __future__ import annotations

import json
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml
from transformers import AutoConfig

from lamina import files
from lamina.config import Config, resolved_values
from lamina.distributed.launch import launch
from lamina.errors import BenchError
from lamina.models.source import find_model
from lamina.progress import Notify
from lamina.runs import Run
from lamina.runs.events import Step
from lamina.training.plan.scale import MACHINES, Estimate, Work, fastest, ulysses_seconds

# Steps at the start of a run that are not measured.
_WARMUP = 1

# Bytes of a frozen weight, by how it is stored; 4 bits with its scales, quantized themselves.
_WEIGHT_BYTES = {4: 0.516, 8: 1.0}


@dataclass(frozen=True)
class Measured:
    """A run in some number of processes.

    Attributes:
        world_size: Number of processes.
        strategy: How they shared the work.
        tokens_per_second: Over all steps but the first.
        speedup: The same, relative to the first number of processes.
        step_seconds: Median of a step.
        communication_share: Share of a step in which the process that computed longest did not compute.
        bytes_per_step: What each process adds up over all of them in a step.
        peak_memory_by_rank: Of each process, in bytes.
        adapter_digest: Of the adapter, which must be the same for all.
    """

    world_size: int
    strategy: str
    tokens_per_second: float
    speedup: float
    step_seconds: float
    communication_share: float
    bytes_per_step: int
    peak_memory_by_rank: list[int]
    adapter_digest: str


@dataclass(frozen=True)
class ScaleReport:
    """What was measured, and what it would be elsewhere.

    Attributes:
        measured: For each number of processes.
        paper: Estimates by machine, for each number of GPUs; not measured.
        sequence_seconds: By machine, estimated time of the exchanges of a micro-batch whose documents are divided over
            all of its GPUs.
    """

    measured: list[Measured]
    paper: dict[str, list[Estimate]]
    sequence_seconds: dict[str, float]

    @property
    def same_adapter(self) -> bool:
        """Whether every number of processes trained the same adapter."""
        return len({each.adapter_digest for each in self.measured}) == 1

    def as_json(self) -> dict[str, Any]:
        """Returns the report as plain data."""
        return {**asdict(self), "same_adapter": self.same_adapter}


def bench_scale(
    config: Config, sizes: Sequence[int], steps: int, threads: int, gpus: Sequence[int], notify: Notify
) -> ScaleReport:
    """Measures training in several numbers of processes.

    Args:
        config: What is trained; its output directory is not touched.
        sizes: Numbers of processes.
        steps: Measured optimizer steps of each run.
        threads: Of each process, the same for all, on which the adapter's last digits may depend.
        gpus: Numbers of GPUs for the estimates.
        notify: Told before each run.

    Raises:
        BenchError: A run failed.
    """
    measured: list[Measured] = []
    with tempfile.TemporaryDirectory(prefix="lamina-scale-") as folder:
        for size in sizes:
            notify(f"Training {steps} steps in {size} process{'es' * (size > 1)} ...")
            measured.append(_measure(config, size, steps, threads, Path(folder) / str(size), measured))
        run = Run(Path(folder) / str(sizes[0]) / "run")
        work = _work(config, run)
    paper = {name: [fastest(work, machine, count) for count in gpus] for name, machine in MACHINES.items()}
    sequence = {name: ulysses_seconds(work, machine, machine.per_host) for name, machine in MACHINES.items()}
    return ScaleReport(measured, paper, sequence)


def _measure(config: Config, size: int, steps: int, threads: int, folder: Path, before: Sequence[Measured]) -> Measured:
    folder.mkdir()
    values = dict(resolved_values(config))
    train = {**values["train"], "max_steps": steps + _WARMUP, "num_train_epochs": None, "save_steps": 10**9}
    train |= {"logging_steps": 1, "eval_steps": None, "early_stopping_patience": None, "early_stopping_threshold": 0.0}
    values |= {"train": train, "data": {**values["data"], "eval": None}, "output_dir": str(folder / "run")}
    path = folder / "config.yaml"
    files.write_text(path, yaml.safe_dump(values, sort_keys=False))
    logs = folder / "logs"
    if code := launch(["train", str(path), "--json"], size, threads=threads, logs=logs):
        said = [text for log in logs.rglob("stdout.log") if (text := log.read_text().strip())]
        reason = json.loads(said[0])["error"]["message"] if said else f"exit code {code}"
        raise BenchError(f"training in {size} processes failed: {reason}")
    run = Run(folder / "run")
    summary, events = run.summary, list(run.events(Step))[_WARMUP:]
    assert summary is not None and summary.tokens_per_second is not None
    computing = [max(event.seconds_by_rank or [event.step_seconds]) for event in events]
    seconds = [event.step_seconds for event in events]
    return Measured(
        world_size=size,
        strategy=summary.strategy or "single",
        tokens_per_second=summary.tokens_per_second,
        speedup=summary.tokens_per_second / (before[0].tokens_per_second if before else summary.tokens_per_second),
        step_seconds=statistics.median(seconds),
        communication_share=max(0.0, 1 - sum(computing) / sum(seconds)),
        bytes_per_step=8 * summary.trainable_parameters if size > 1 else 0,
        peak_memory_by_rank=summary.peak_memory_by_rank or [],
        adapter_digest=summary.adapter_digest,
    )


def _work(config: Config, run: Run) -> Work:
    """What a measured run trained, for the estimates."""
    assert run.summary is not None
    adapter, total = run.summary.trainable_parameters, run.summary.total_parameters
    folder = find_model(config.model).folder
    about = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False).get_text_config()
    head = about.vocab_size * about.hidden_size * (1 if about.tie_word_embeddings else 2)
    tokens = [event.tokens / config.train.micro_batches_per_step for event in run.events(Step)]
    micro_batch = round(statistics.mean(tokens))
    bits = config.quantization.bits if config.quantization is not None else 16
    kept = 10 * about.hidden_size + 2 * getattr(about, "intermediate_size", 4 * about.hidden_size)
    return Work(
        weights=max(1, total - adapter - head),
        head_weights=head,
        adapter_weights=adapter,
        layers=about.num_hidden_layers,
        width=about.hidden_size,
        weight_bytes=_WEIGHT_BYTES.get(bits, 2.0),
        tokens=micro_batch,
        document=min(micro_batch, config.data.max_length),
        micro_batches=config.train.micro_batches_per_step,
        activation_bytes=2.0 * about.num_hidden_layers * micro_batch * kept,
    )
