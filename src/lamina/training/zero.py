"""DeepSpeed's ZeRO as the optimizer of a run: each process holds a part of the gradients and of the optimizer's state.

Only the trained tensors are DeepSpeed's. The model, its fused layers and its loss stay lamina's, so that the base may
be quantized. This pays where what is trained is large, as in full fine-tuning, above all with the optimizer's state in
the memory of the CPU (`offload_optimizer`). ZeRO 3 divides the weights too; for a frozen base, `strategy: fsdp` does.

Rajbhandari et al. 2020, "ZeRO: Memory Optimizations Toward Training Trillion Parameter Models", arXiv:1910.02054.
"""

from __future__ import annotations

import importlib
import json
import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lamina.config import Config
from lamina.distributed.world import World
from lamina.errors import ConfigError, Problem
from lamina.methods.shared.base import Hooks

FIELD = "distributed.deepspeed"

# Optimizers that treat every element by itself, which a part of a flattened tensor allows.
ELEMENTWISE = ("adamw_torch", "lion")

STAGES = (1, 2)


class ZeroEngine:
    """DeepSpeed's engine over the trained tensors.

    Args:
        tensors: The trained tensors by name, float32.
        optimizer: Over them.
        settings: DeepSpeed's configuration, from `zero_settings`.
        world: The processes.
    """

    def __init__(
        self,
        tensors: Mapping[str, nn.Parameter],
        optimizer: torch.optim.Optimizer,
        settings: Mapping[str, Any],
        world: World,
    ) -> None:
        deepspeed = _deepspeed()
        self._tensors, self._world = tensors, world
        self._fragments: Any = importlib.import_module("deepspeed.utils")
        with world.exchanging("starting DeepSpeed"):
            self._engine, self.optimizer, _, _ = deepspeed.initialize(
                model=_Holder(list(tensors.values())),
                model_parameters=list(tensors.values()),
                optimizer=optimizer,
                config=dict(settings),
            )

    def backward(self, loss: torch.Tensor, last: bool) -> None:
        """Goes backward through a part of the step's loss.

        Args:
            loss: The part, which is added to those of all processes.
            last: Whether it is the process's last one in the step; gradients are then added up.
        """
        with self._world.exchanging("adding up the gradients"):
            self._engine.set_gradient_accumulation_boundary(last)
            self._engine.backward(self._engine(lambda: loss * self._world.size))  # it takes the mean of the processes

    def step(self) -> float:
        """Clips and updates; returns the gradient's norm before clipping."""
        with self._world.exchanging("updating the adapter"):
            self._engine.step()
        return float(self._engine.get_global_grad_norm())

    def moments(self) -> dict[str, torch.Tensor]:
        """Returns the optimizer's state as a run without DeepSpeed has it; all processes must ask."""
        self._link()
        states = [state for state in self._inner.state.values() if state]
        keys = sorted({key for state in states for key, value in state.items() if _is_moment(value)})
        found: dict[str, torch.Tensor] = {}
        with self._world.exchanging("gathering the optimizer's state"):
            for name, tensor in self._tensors.items():
                for key in keys:
                    found[f"{key}/{name}"] = self._fragments.safe_get_full_optimizer_state(tensor, key)
                steps = [state["step"] for state in states if "step" in state]
                if steps:
                    found[f"step/{name}"] = torch.as_tensor(steps[0]).clone()
        return found

    @torch.no_grad()
    def load(self, tensors: Mapping[str, torch.Tensor], moments: Mapping[str, torch.Tensor]) -> None:
        """Puts trained tensors and the optimizer's state back."""
        with torch.enable_grad():  # an empty update, so that there is a state
            self.backward(torch.stack([0.0 * tensor.sum() for tensor in self._tensors.values()]).sum(), True)
        self.step()
        self._link()
        steps: set[float] = set()
        for name, parameter in self._tensors.items():
            parameter.copy_(tensors[name])
            self._fragments.safe_set_full_fp32_param(parameter, tensors[name].to(parameter.device))
            for key, value in moments.items():
                kind, _, owner = key.partition("/")
                if owner == name and kind == "step":
                    steps.add(float(value))
                elif owner == name:
                    self._fragments.safe_set_full_optimizer_state(parameter, value.to(parameter.device), kind)
        for state in self._inner.state.values():
            if steps and "step" in state:
                state["step"] = torch.tensor(max(steps))

    def _link(self) -> None:
        """Lets each tensor find its part of the state, which DeepSpeed does for the first group of tensors alone."""
        groups = zip(self.optimizer.bit16_groups, self.optimizer.single_partition_of_fp32_groups, strict=True)
        for tensors, partition in groups:
            self._fragments.lazy_init_hp_params_optimizer_state(tensors, partition, self._inner.state)

    @property
    def _inner(self) -> torch.optim.Optimizer:
        return self.optimizer.optimizer


class _Holder(nn.Module):
    """The trained tensors as a model, whose forward is any function."""

    def __init__(self, tensors: list[nn.Parameter]) -> None:
        super().__init__()
        self.tensors = nn.ParameterList(tensors)

    def forward(self, function: Callable[[], torch.Tensor]) -> torch.Tensor:
        return function()


def zero_settings(config: Config) -> dict[str, Any]:
    """Returns DeepSpeed's configuration: the user's, with what lamina decides filled in.

    Raises:
        ConfigError: The user's sets something that lamina decides to another value, or asks for what is not supported.
    """
    given = _read(config.distributed.deepspeed)
    train = config.train
    owned: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1,  # counts for its logs alone
        "gradient_accumulation_steps": 1,  # lamina says where a step ends
        "gradient_clipping": train.max_grad_norm,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    }
    settings: dict[str, Any] = {"steps_per_print": 10**9, **given}
    problems = []
    for key, value in owned.items():
        if given.get(key, "auto") not in ("auto", value):
            fix = "leave it out, or set it to auto"
            problems.append(Problem(f"{FIELD}.{key}", f"is {given[key]!r}, and lamina sets it to {value!r}", fix))
        settings[key] = value
    for key, instead in (
        ("train_batch_size", "train.global_batch_size"),
        ("optimizer", "train.optim"),
        ("scheduler", "train.lr_scheduler_type"),
        ("fp16", "dtype"),
        ("bf16", "dtype"),
    ):
        if settings.pop(key, "auto") != "auto":
            problems.append(Problem(f"{FIELD}.{key}", "is lamina's to decide", f"set {instead} instead"))
    zero = dict(settings.get("zero_optimization") or {})
    stage = zero.setdefault("stage", 2)
    if stage not in STAGES:
        message = f"{stage!r} is not one of 1, 2"
        fix = "use 2; `distributed: {strategy: fsdp}` divides a frozen base's weights"
        problems.append(Problem(f"{FIELD}.zero_optimization.stage", message, fix))
    if train.optim not in ELEMENTWISE:
        message = f"'{train.optim}' needs whole tensors, and ZeRO divides them"
        problems.append(Problem("train.optim", message, f"use one of {', '.join(ELEMENTWISE)}"))
    if problems:
        raise ConfigError(problems)
    return {**settings, "zero_optimization": zero}


def check_hooks(hooks: Hooks, method: str) -> None:
    """Checks that a method needs no gradients between backward and update, which ZeRO divides.

    Raises:
        ConfigError: It does.
    """
    if type(hooks) is not Hooks:
        message = f"method '{method}' reads whole gradients, and ZeRO divides them"
        raise ConfigError(Problem("distributed.strategy", message, "use ddp or fsdp"))


def _read(given: str | Mapping[str, Any] | None) -> dict[str, Any]:
    if not isinstance(given, str):
        return dict(given or {})
    try:
        found = json.loads(Path(given).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(Problem(FIELD, f"{given} cannot be read: {error}", "name a JSON file")) from None
    if not isinstance(found, dict):
        raise ConfigError(Problem(FIELD, f"{given} holds no JSON object", "name a file with DeepSpeed's settings"))
    return found


def _deepspeed() -> Any:
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    try:
        module = importlib.import_module("deepspeed")
    except ImportError as error:
        message = f"'deepspeed' needs the package deepspeed, which cannot be imported ({error})"
        fix = "pip install 'lamina[deepspeed]', or use ddp or fsdp"
        raise ConfigError(Problem("distributed.strategy", message, fix)) from None
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    return module


def _is_moment(value: object) -> bool:
    return isinstance(value, torch.Tensor) and value.numel() > 1
