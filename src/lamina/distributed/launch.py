"""Starts the processes of a run on this machine, by torch's elastic agent, as `torchrun` does.

`lamina train run.yaml --nproc 4` is the same as `torchrun --nproc-per-node 4 -m lamina train run.yaml`, but for the
threads of each process (the cores are shared out; torchrun would take one) and the report of a failure, which is one
message. The agent ends all processes if one ends with an error, and starts them again up to `max_restarts` times.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import sys
import tempfile
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from lamina.distributed.failure import LostRankError
from lamina.errors import ConfigError, Interrupted, Problem
from lamina.signals import handlers_restored

# Seconds that processes have to save a checkpoint after a signal.
_SHUTDOWN_SECONDS = 120


def count_processes(text: str | None) -> int:
    """Returns how many processes `--nproc` asks for.

    Raises:
        ConfigError: It is no number of processes.
    """
    if text in (None, "auto"):
        import torch

        return max(1, torch.cuda.device_count())
    assert text is not None
    if not text.isdecimal() or int(text) < 1:
        raise ConfigError(Problem("--nproc", f"{text!r} is not a number of processes", "use 1 or more, or auto"))
    return int(text)


def launch(
    arguments: Sequence[str],
    nproc: int,
    nnodes: int = 1,
    endpoint: str | None = None,
    max_restarts: int = 0,
    threads: int | None = None,
    logs: Path | None = None,
) -> int:
    """Runs a command of lamina's in several processes, and waits for them.

    Args:
        arguments: Of the command.
        nproc: Processes on this machine.
        nnodes: Machines.
        endpoint: HOST:PORT where the processes of several machines meet.
        max_restarts: How often to start all processes again if one fails.
        threads: Of each process; by default, the cores are shared out.
        logs: Folder for what the processes print; by default they print where this one does.

    Returns:
        The exit code: 0, or that of the first process that failed or was interrupted, which has told why.

    Raises:
        ConfigError: There is no endpoint, and several machines.
        LostRankError: The first process was killed, so that nobody told.
    """
    if nnodes > 1 and endpoint is None:
        fix = "name a machine and a free port, such as --rdzv-endpoint node0:29500, the same on every machine"
        raise ConfigError(Problem("--rdzv-endpoint", f"is needed with --nnodes {nnodes}", fix))
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException, Std
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    address = None if endpoint is None else _address_towards(endpoint)
    variables = {"OMP_NUM_THREADS": str(threads or max(1, len(os.sched_getaffinity(0)) // nproc))}
    if address is not None and (interface := _interface_of(address)):
        variables["GLOO_SOCKET_IFNAME"] = interface
    with tempfile.TemporaryDirectory() as aside, _defaults(variables), handlers_restored():
        specs = DefaultLogsSpecs(aside) if logs is None else DefaultLogsSpecs(str(logs), redirects=Std.ALL)
        config = LaunchConfig(
            min_nodes=nnodes,
            max_nodes=nnodes,
            nproc_per_node=nproc,
            run_id="lamina" if endpoint else uuid.uuid4().hex,
            rdzv_backend="c10d",
            rdzv_endpoint=endpoint or "localhost:0",
            max_restarts=max_restarts,
            local_addr=address,
            logs_specs=specs,
            shutdown_timeout=_SHUTDOWN_SECONDS,
        )
        try:
            elastic_launch(config, sys.executable)("-m", "lamina", *arguments)
        except ChildFailedError as error:
            return _exit_code(error)
        except SignalException:  # it was passed on, and the first process has told that it saved a checkpoint
            return Interrupted.exit_code
    return 0


@contextlib.contextmanager
def _defaults(variables: Mapping[str, str]) -> Iterator[None]:
    """Sets environment variables for the processes that are started in the block, but those that the user has set."""
    missing = [name for name in variables if name not in os.environ]
    os.environ.update({name: variables[name] for name in missing})
    try:
        yield
    finally:
        for name in missing:
            del os.environ[name]


def _address_towards(endpoint: str) -> str | None:
    """This machine's address as the machine at the endpoint sees it; None if it cannot be found out."""
    host, _, port = endpoint.rpartition(":")
    with contextlib.suppress(OSError, ValueError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((host or endpoint, int(port or 1)))  # sends nothing
        return probe.getsockname()[0]
    return None


def _interface_of(address: str) -> str | None:
    """The network interface that has an address, which gloo would otherwise guess from the machine's name."""
    import psutil

    for name, addresses in psutil.net_if_addrs().items():
        if any(each.address == address for each in addresses):
            return name
    return None


def _exit_code(error: BaseException) -> int:
    """The exit code of processes that failed: that of the first one if it could end by itself."""
    failures = error.failures  # pyright: ignore[reportAttributeAccessIssue]
    codes = {rank: failure.exitcode for rank, failure in failures.items()}
    own = [code for code in codes.values() if code > 0]
    if own:
        return own[0]
    rank, failure = min(failures.items())
    name = signal.Signals(-failure.exitcode).name if failure.exitcode < 0 else f"exit code {failure.exitcode}"
    raise LostRankError(
        f"rank {rank} was ended by {name}. Fix: start the same command again with --resume.", sorted(failures)
    )
