"""lamina itself: the session's parts and `training_step`, as `lamina train` uses them."""

from __future__ import annotations

from typing import Any

from lamina.bench.job import Job
from lamina.bench.meter import Meter
from lamina.compute.fusion import FusionReport, Recompute, fast_path
from lamina.config import TrainConfig
from lamina.config.methods.lora import LoraConfig
from lamina.losses.cross_entropy import CrossEntropy
from lamina.methods.shared.base import inject
from lamina.models.load import load_base
from lamina.optim import build_optimizer
from lamina.structure.head import find_head
from lamina.training.plan.memory import choose_checkpointing
from lamina.training.step import training_step
from lamina.version import __version__

ABOUT = "lamina train: documents packed exactly, fused adapter products, head on supervised tokens only"
REQUIRES = ()
NEEDS_CUDA = False


def run(job: Job, meter: Meter) -> dict[str, Any]:
    """Trains with lamina's own hot path."""
    return train(job, meter)


def train(job: Job, meter: Meter, gradient_checkpointing: bool | str = "auto") -> dict[str, Any]:
    """The same, with the setting of `train.gradient_checkpointing`."""
    base = load_base(job.model, job.dtype, meter.device)
    head, loss = find_head(base.model), CrossEntropy()
    injection = inject(base.model, LoraConfig(r=job.rank, lora_alpha=job.alpha), job.seed)
    parameters = list(injection.tensors().values())
    optimizer = build_optimizer(TrainConfig(learning_rate=job.learning_rate), injection.tensors())
    longest = max(sum(len(example) for example in batch) for batch in job.batches)

    def recompute(fusion: FusionReport) -> Recompute:
        return choose_checkpointing(gradient_checkpointing, base.model, longest, fusion.complete)

    base.model.train()
    meter.loaded(base.model)
    longest_document = max(len(example) for batch in job.batches for example in batch)
    with fast_path(base.model, recompute, longest=longest_document) as fusion:
        for batch in job.batches:
            meter.begin()
            settings = (job.learning_rate, job.max_grad_norm)
            result = training_step(
                base.model, head, loss, optimizer, parameters, [batch], *settings, layout=fusion.layout
            )
            meter.end(result.loss, [len(example) for example in batch], result.supervised_tokens)
    return {
        "lamina": __version__,
        "packing": "exact",
        "gradient_checkpointing": fusion.recompute,
        "fused_layers": fusion.fused,
    }
