"""Joins the processes that a launcher has started, by what it has set in the environment."""

from __future__ import annotations

import datetime
import itertools
import os
import time
from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import Store
from torch.distributed.rendezvous import rendezvous

from lamina.distributed.group import Group
from lamina.distributed.silence import end_silent_connections
from lamina.errors import RunError

# Seconds that a process waits for the store that all of them share, and of each attempt.
_STORE_TIMEOUT = 600.0
_ATTEMPT = 20.0

# How often this process has met the others.
_meetings = itertools.count()


def join(environment: Mapping[str, str] | None = None) -> Group:
    """Joins the processes that the environment names; the connections are opened by the first exchange.

    Raises:
        RunError: The store that they share cannot be reached.
    """
    environment = os.environ if environment is None else environment
    local_size, local_rank = int(environment.get("LOCAL_WORLD_SIZE", "1")), int(environment.get("LOCAL_RANK", "0"))
    if torch.cuda.is_available():
        torch.cuda.set_device(local_rank % torch.cuda.device_count())
    if dist.is_initialized():  # by a trainer around this one, such as Ray Train's
        store = dist.distributed_c10d._get_default_store().clone()  # pyright: ignore[reportAttributeAccessIssue]
        return Group(store, dist.get_rank(), dist.get_world_size(), local_size, None, local_rank, next(_meetings))
    rank, size = int(environment["RANK"]), int(environment["WORLD_SIZE"])
    store = _connect(rank, size)
    backend = "cuda:nccl,cpu:gloo" if torch.cuda.is_available() else "gloo"
    group = Group(store, rank, size, local_size, backend, local_rank, next(_meetings))
    end_silent_connections()
    return group


def _connect(rank: int, size: int) -> Store:
    """Connects to the store that the environment names, a while at a time, so that a signal is heard in between.

    Raises:
        RunError: It cannot be reached.
    """
    holds_it = rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    patience = datetime.timedelta(seconds=_STORE_TIMEOUT if holds_it else _ATTEMPT)
    end = time.monotonic() + _STORE_TIMEOUT
    while True:
        try:
            return next(rendezvous("env://", rank, size, timeout=patience))[0]
        except (ValueError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and time.monotonic() < end:
                continue
            raise RunError(
                f"this is process {rank} of {size} by RANK and WORLD_SIZE, but the others cannot be reached at "
                f"MASTER_ADDR and MASTER_PORT ({str(error).splitlines()[0][:200]}). Fix: start them with --nproc, "
                "torchrun or accelerate launch; for one process, unset WORLD_SIZE."
            ) from error
