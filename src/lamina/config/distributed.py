"""`distributed:` section: how several processes share a run. How many there are is the launcher's, not a setting."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from lamina.config.section import Section


class DistributedConfig(Section):
    """How several processes train together. It does not change the result, and a resumed run may change it."""

    strategy: Literal["auto", "ddp", "fsdp", "deepspeed"] = "auto"
    """`ddp`: each process has the whole base model, and the adapter's gradients are added up once a step. `fsdp`: the
    frozen base is divided over the processes, and each layer gathered while it runs. `deepspeed`: ZeRO 1 or 2
    divides gradients and optimizer state of what is trained. `auto`: ddp if the base fits, else fsdp."""

    deepspeed: str | dict[str, Any] | None = None
    """deepspeed: its settings, or a JSON file with them; null means ZeRO 2. Batch sizes, clipping, optimizer, schedule
    and dtype are lamina's, and must be absent or `auto`."""

    dp_shard_size: Annotated[int, Field(ge=2)] | None = None
    """fsdp: number of processes that share one base, such as the GPUs of a machine; null means all of them."""

    reshard_after_forward: bool = True
    """fsdp: free a layer's weights between its forward and its backward."""

    sp_size: Annotated[int, Field(ge=1)] = 1
    """Number of processes that share a micro-batch's documents, each with a part of their tokens (Ulysses): for
    documents whose activations do not fit. The model's attention heads must be a multiple of it."""

    timeout: Annotated[float, Field(gt=0.0)] = 1800.0
    """Seconds that a process may be late before the others give up, and say which one and for what."""
