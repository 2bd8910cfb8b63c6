"""Loads the base of a run, in a dtype that it can be trained in."""

from __future__ import annotations

import torch

from lamina.adapters.adapter import Adapter
from lamina.config import Config
from lamina.errors import ConfigError, Problem
from lamina.machine.hardware import choose_dtype, default_device, dtype_name, explain_dtype
from lamina.methods.shared.base import find_method
from lamina.models.load import Base, load_base
from lamina.progress import Notify
from lamina.training.new_rows import tokens_of


def load_for_training(config: Config, start: Adapter | None, notify: Notify, divided: bool = False) -> Base:
    """Loads the base model that a configuration names, with the tokens that it adds.

    Args:
        config: The run's configuration.
        start: The adapter that training begins from, if any.
        notify: Told what is loaded, and in which dtype.
        divided: Whether it will be divided over processes; each layer's part then goes to the device by itself.

    Raises:
        LaminaError: It cannot be loaded, or not be trained on.
    """
    check_dtype(config, default_device())
    notify(f"Loading {config.model} ...")
    method = config.method if start is None else start.config
    base = load_base(
        config.model,
        dtype_name(choose_dtype(config.dtype, default_device())) if divided else config.dtype,
        torch.device("cpu") if divided else None,
        notify=notify,
        quantization=config.quantization,
        plan_loftq=find_method(method.type).plan_loftq(method),
        offload=config.offload if config.method.base_is_read_only and not divided else False,
        tokens=tokens_of(config, start),
        trust_remote_code=config.trust_remote_code,
    )
    if config.dtype == "auto" and config.quantization is None:
        notify(explain_dtype(base.dtype, base.model.device))
    return base


def check_dtype(config: Config, device: torch.device) -> None:
    """float16 needs a loss scale, and hardware that multiplies it.

    Raises:
        ConfigError: It is asked for where it cannot be trained in.
    """
    compute = config.quantization.compute_dtype if config.quantization is not None else "auto"
    wanted = config.dtype if compute == "auto" else compute
    field = "dtype" if compute == "auto" else "quantization.compute_dtype"
    chosen = choose_dtype(wanted, device)
    if chosen != torch.float16:
        return
    if device.type == "cpu":
        message = (
            "float16 is for GPUs: CPUs multiply it by conversion to float32, and gradients underflow in its range. A "
            "base that is stored in float16 loses nothing in float32."
        )
        raise ConfigError(Problem(field, message, "set it to auto, float32 or bfloat16"))
    if config.train.optim.endswith("layerwise"):
        message = (
            f"float16 needs a loss scale, and {config.train.optim} updates tensors before it is known whether it fits."
        )
        raise ConfigError(Problem("train.optim", message, "use another optim, or dtype: float32"))
