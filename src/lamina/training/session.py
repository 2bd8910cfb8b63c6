"""`Session`: the parts of a run, in memory. `setup.py` builds it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn

from lamina.adapters.adapter import Adapter
from lamina.chat.template import ChatTemplate
from lamina.config import Config
from lamina.data.batch import Layout
from lamina.data.dataset import Dataset
from lamina.data.packing import plan_epoch
from lamina.data.side import Batches
from lamina.distributed.world import ALONE, World
from lamina.losses.base import Loss
from lamina.methods.shared.base import Hooks, Injection, find_method
from lamina.methods.shared.coverage import Coverage
from lamina.models.load import Base
from lamina.optim import Schedule
from lamina.runs import Run
from lamina.structure.head import Head
from lamina.training.checkpoint import optimizer_tensors
from lamina.training.eval_sets import best_set
from lamina.training.reference import Reference, check_reference
from lamina.training.zero import ZeroEngine

# `train.compile`, in the kernels' own terms.
KERNELS: dict[str | bool, str] = {"auto": "auto", True: "compiled", False: "plain"}


@dataclass(frozen=True)
class Session:
    """The parts of a run, in memory.

    Attributes:
        config: The run's configuration.
        run: Its directory.
        base: The frozen model.
        template: Renders conversations.
        dataset: The encoded data.
        head: The model's parts.
        loss: What is minimized.
        injection: The adapter.
        coverage: Which of the base's weights it is on.
        tensors: The adapter's tensors by name.
        hooks: What the method does around each step.
        optimizer: Over the tensors.
        schedule: Learning rate by step.
        micro_batches: Micro-batches in an epoch.
        total_steps: Optimizer steps of the whole run.
        longest: Tokens of the largest micro-batch that there can be.
        start: The adapter that training starts from; None for a new one.
        reference: What the loss compares with; None if it needs none.
        world: The processes that train together.
        strategy: How they share the work.
        engine: DeepSpeed's, with that strategy.
    """

    config: Config
    run: Run
    base: Base
    template: ChatTemplate
    dataset: Dataset
    head: Head
    loss: Loss
    injection: Injection
    coverage: Coverage
    tensors: dict[str, nn.Parameter]
    hooks: Hooks
    optimizer: torch.optim.Optimizer
    schedule: Schedule
    micro_batches: int
    total_steps: int
    longest: int
    start: Adapter | None = None
    reference: Reference | None = None
    world: World = ALONE
    strategy: str = "single"
    engine: ZeroEngine | None = None

    @property
    def longest_document(self) -> int:
        """Tokens of the longest document of training and evaluation."""
        return max(self.dataset.train.longest, self.dataset.eval.longest)

    @property
    def best_set(self) -> str:
        """Name of the evaluation set that picks the best checkpoint; empty if sets have no names."""
        return best_set(self.dataset.eval_sets, self.config.train.best_eval)

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps in an epoch; the last one may have fewer micro-batches."""
        return math.ceil(self.micro_batches / self.per_step)

    @property
    def per_step(self) -> int:
        """Micro-batches in an optimizer step, over all processes together."""
        return self.config.train.micro_batches_per_step

    def moments(self) -> dict[str, torch.Tensor]:
        """The optimizer's state, named `KEY/TENSOR`; with DeepSpeed, all processes must ask."""
        return optimizer_tensors(self.tensors, self.optimizer) if self.engine is None else self.engine.moments()

    def check_reference(self, layout: Layout) -> str:
        """Checks that the model as training starts is its reference, where that is so; see `reference.check_reference`.

        Returns:
            What a user should know; empty if all is as it should be, or there is no reference.

        Raises:
            TrainingError: It is not.
        """
        if self.reference is None:
            return ""
        method = self.config.method
        as_base = self.start is None and find_method(method.type).starts_as_base and not method.starts_elsewhere
        is_start = self.reference.kind == "start" or as_base
        return check_reference(self.epoch_plan(0)[0], self.reference, self.base, self.head, layout, is_start)

    def epoch_plan(self, epoch: int) -> Batches:
        """The micro-batches of an epoch, in order."""
        train, config = self.dataset.train, self.config
        plan = plan_epoch(
            train.lengths,
            config.train.per_device_train_batch_size,
            config.data.max_length,
            config.data.packing,
            config.seed,
            epoch,
            config.data.group_by_length,
            self.dataset.train_blocks,
        )
        return Batches(train, plan)
