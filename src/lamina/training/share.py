"""How the processes of a run share the base: each has all of it, or a part."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn
from transformers import PreTrainedModel

from lamina.compute.fusion import FusionReport, Recompute
from lamina.compute.ops.adapter import AdapterModule
from lamina.config import Config
from lamina.config.distributed import DistributedConfig
from lamina.data.batch import PACKED
from lamina.distributed.group import Group
from lamina.distributed.world import World
from lamina.errors import ConfigError, Problem
from lamina.losses.base import Loss
from lamina.machine.hardware import choose_dtype, default_device
from lamina.machine.memory import available_bytes
from lamina.methods.shared.base import Hooks, Injection
from lamina.models.fingerprint import weight_files
from lamina.models.sharding import Sharding, shard_layers
from lamina.models.source import find_model
from lamina.models.stored import read_config, stored_quantization
from lamina.progress import Notify
from lamina.training.plan.memory import choose_checkpointing
from lamina.training.zero import ZeroEngine, check_hooks, zero_settings

# What `gradient_checkpointing: auto` chooses between, by how much memory it saves.
_SAVING: tuple[Recompute, ...] = (False, "selective", True)

# The share of free memory that a whole base may take; the rest is for activations, the adapter and everything else.
_SHARE_FOR_BASE = 0.6


def choose_strategy(config: Config, world: World, notify: Notify) -> str:
    """Resolves `distributed.strategy`: with `auto`, every process has the whole base if it fits.

    Args:
        config: The run's configuration.
        world: Its processes; the one with the least memory decides.
        notify: Told what `auto` chose, and why.

    Raises:
        ConfigError: The strategy does not fit the method or the number of processes.
    """
    settings = config.distributed
    if world.size == 1:
        return "single"
    if settings.dp_shard_size is not None and world.size % settings.dp_shard_size:
        message = f"{settings.dp_shard_size} does not divide the number of processes, {world.size}"
        raise ConfigError(Problem("distributed.dp_shard_size", message, "use a divisor of it, or null for all"))
    if settings.strategy == "deepspeed":
        zero_settings(config)  # so that its errors come before the base is loaded
    strategy = settings.strategy
    if strategy == "auto":
        size, device = _base_bytes(config), default_device()
        each = available_bytes(device) / (world.local_size if device.type == "cpu" else 1)
        fits = not world.any(size > _SHARE_FOR_BASE * each, "the choice of a strategy")
        strategy = "ddp" if fits or config.method.type == "full" else "fsdp"
        if strategy == "fsdp":
            notify(
                f"The base of {size / 2**30:.1f} GiB does not fit into a process's share of the memory, "
                f"{each / 2**30:.1f} GiB, so it is divided over {world.size} processes (distributed.strategy: fsdp)."
            )
    if strategy == "fsdp" and config.offload is True:
        message = "layers stay on disk, and 'fsdp' divides them over processes"
        raise ConfigError(Problem("offload", message, "set it to auto, or distributed.strategy to ddp"))
    if strategy == "fsdp" and config.method.type == "full":
        message = "'fsdp' divides the frozen base, and method 'full' trains all of it"
        raise ConfigError(Problem("distributed.strategy", message, "use ddp, or another method"))
    return strategy


def form_teams(config: Config, injection: Injection, loss: Loss, world: World) -> None:
    """Lets `distributed.sp_size` processes share each micro-batch's documents.

    Raises:
        ConfigError: The processes, the model, the method or the loss do not allow it.
    """
    parts, model = config.distributed.sp_size, injection.model
    if parts == 1:
        return
    heads = model.config.get_text_config().num_attention_heads
    wrong = ""
    if world.size % parts:
        wrong = f"{parts} does not divide the number of processes, {world.size}"
    elif heads % parts:
        wrong = f"{parts} does not divide the {heads} attention heads of {type(model).__name__}"
    elif not loss.is_per_token:
        wrong = f"loss '{config.loss.type}' needs whole documents, which the processes would divide"
    elif any(isinstance(m, AdapterModule) and m.virtual_tokens for m in model.modules()):
        wrong = f"method '{config.method.type}' puts rows before whole documents"
    if wrong:
        raise ConfigError(Problem("distributed.sp_size", wrong, "use 1, or another divisor of both"))
    assert isinstance(world, Group)
    world.form_teams(parts)


def zero_engine(
    config: Config,
    dtype: torch.dtype,
    tensors: Mapping[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
    hooks: Hooks,
    world: World,
) -> ZeroEngine:
    """Starts DeepSpeed, after which the processes go through a step in lockstep.

    Raises:
        ConfigError: DeepSpeed is not installed, or does not take these settings, or the method.
    """
    settings = zero_settings(config)
    if dtype == torch.float16:
        message = "float16 needs a loss scale, which DeepSpeed's engine does not get"
        raise ConfigError(Problem("dtype", message, "use bfloat16 or float32, or distributed.strategy ddp"))
    check_hooks(hooks, config.method.type)
    engine = ZeroEngine(tensors, optimizer, settings, world)
    world.lockstep = True
    return engine


def check_layout(world: World, strategy: str, fusion: FusionReport) -> None:
    """Checks that the model runs in the way that sharing it takes.

    Raises:
        ConfigError: Its documents cannot be packed, or not in lamina's attention.
    """
    if world.lockstep and not fusion.layout.together:
        message = f"'{strategy}' needs a model whose documents can be packed. {' '.join(fusion.notes)}"
        raise ConfigError(Problem("distributed.strategy", message, "use ddp"))
    if world.team_size > 1 and fusion.layout != PACKED:
        message = f"needs a model whose documents can be packed. {' '.join(fusion.notes)}"
        raise ConfigError(Problem("distributed.sp_size", message, "use 1"))


def divide(model: PreTrainedModel, settings: DistributedConfig, world: World) -> Sharding:
    """Divides the frozen base over the processes, which from now on run it in lockstep."""
    assert isinstance(world, Group), "one process divides nothing"
    sharding = shard_layers(model, world.mesh(settings.dp_shard_size), settings.reshard_after_forward)
    model.to(default_device())  # pyright: ignore[reportArgumentType]
    world.lockstep = True
    return sharding


def agreed_checkpointing(
    setting: bool | str, model: PreTrainedModel, longest: int, fusion: FusionReport, world: World
) -> Recompute:
    """Resolves `train.gradient_checkpointing` for all processes.

    The one with the least memory decides, since recomputed sums may differ in their last bits.

    Args:
        setting: true, false, `selective` or `auto`.
        model: The model with its adapter.
        longest: Tokens of the largest micro-batch.
        fusion: What is fused.
        world: The processes.
    """
    own = choose_checkpointing(setting, model, longest // world.team_size, fusion.complete, world.local_size)
    return max(world.gather(own, "the choice of gradient checkpointing"), key=_SAVING.index)


def _base_bytes(config: Config) -> int:
    """Estimates the bytes of the base in memory, from its files."""
    folder = find_model(config.model).folder
    stored = sum(path.stat().st_size for path in weight_files(folder))
    if config.quantization is not None and stored_quantization(folder) is None:
        return stored * config.quantization.bits // 16
    about = read_config(folder)
    stored_width = 4 if about.get("dtype", about.get("torch_dtype")) == "float32" else 2
    return stored * choose_dtype(config.dtype, default_device()).itemsize // stored_width
