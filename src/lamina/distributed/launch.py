"""Starts the processes of a run on this machine, by torch's elastic agent, as `torchrun` does.

`lamina train run.yaml --nproc 4` is the same as `torchrun --nproc-per-node 4 -m lamina train run.yaml`, but for the
threads of each process (the cores are shared out; torchrun would take one) and the report of a failure, which is one
message. The agent ends all processes if one ends with an error, and starts them again up to `max_restarts` times.
"""

from __future__ import annotations

import contextlib
import datetime
import logging
import os
import signal
import socket
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from lamina.distributed.failure import AGAIN, LostRankError
from lamina.distributed.silence import no_silent_connections
from lamina.distributed.suspended import watch_for_suspended
from lamina.distributed.words import VARIABLE, Words, place, was_done_in, words_in
from lamina.errors import ConfigError, Interrupted, Problem
from lamina.signals import handlers_restored

# Seconds that processes have to save a checkpoint after a signal.
_SHUTDOWN_SECONDS = 120

# The port where machines meet, unless it is named.
_PORT = 29400

# Seconds to reach the place where several machines meet, and then to wait until all of them are there.
_REACH_SECONDS = 60
_MEET_SECONDS = 600


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
    notify: Callable[[str], object] = lambda message: None,
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
        notify: Gets a message where a process is suspended.

    Returns:
        The exit code: 0, or that of the first process that failed or was interrupted, which has told why.

    Raises:
        ConfigError: There is no endpoint, and several machines; or nobody can be reached there.
        LostRankError: A process was killed, and nobody told; or a machine has not come.
        Interrupted, KeyboardInterrupt: A signal came to this process or to one of those.
    """
    if nnodes > 1 and endpoint is None:
        fix = "name a machine and a free port, such as --rdzv-endpoint node0:29500, the same on every machine"
        raise ConfigError(Problem("--rdzv-endpoint", f"is needed with --nnodes {nnodes}", fix))
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException, Std
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous import RendezvousConnectionError, RendezvousTimeoutError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    for name in [name for name in logging.root.manager.loggerDict if name.startswith("torch.distributed.elastic")]:
        logging.getLogger(name).setLevel(logging.CRITICAL)  # each has a level of its own
    address = None if endpoint is None else _address_towards(endpoint)
    meeting: dict[str, Any] = {"read_timeout": _REACH_SECONDS, "join_timeout": _MEET_SECONDS}
    if endpoint is not None:
        meeting["is_host"] = is_host(endpoint, address)  # torch would guess it from the machine's name
    variables = {
        "OMP_NUM_THREADS": str(threads or max(1, len(os.sched_getaffinity(0)) // nproc)),
    }
    if address is not None and (interface := _interface_of(address)):
        variables["GLOO_SOCKET_IFNAME"] = interface
    with (
        tempfile.TemporaryDirectory() as aside,
        _defaults(variables | ({VARIABLE: place(aside)} if logs is None else {})),
        handlers_restored(),
        no_silent_connections(),
        watch_for_suspended(notify),
    ):
        specs = DefaultLogsSpecs(aside) if logs is None else DefaultLogsSpecs(str(logs), redirects=Std.ALL)
        config = LaunchConfig(
            min_nodes=nnodes,
            max_nodes=nnodes,
            nproc_per_node=nproc,
            run_id="lamina" if endpoint else uuid.uuid4().hex,
            rdzv_backend="c10d",
            rdzv_endpoint=endpoint or "localhost:0",
            rdzv_configs=meeting,
            max_restarts=max_restarts,
            local_addr=address,
            logs_specs=specs,
            shutdown_timeout=_SHUTDOWN_SECONDS,
        )
        try:
            elastic_launch(config, sys.executable)("-m", "lamina", *arguments)
        except ChildFailedError as error:
            left = Path(aside)
            return _exit_code(error, notify, words_in(left, max_restarts), was_done_in(left, max_restarts))
        except RendezvousConnectionError:
            raise _unreachable(endpoint) from None
        except RendezvousTimeoutError:
            raise LostRankError(
                f"not all of {nnodes} machines have come to {endpoint} within {_MEET_SECONDS} s. "
                "Fix: run the same command on each of them.",
                [],
            ) from None
        except SignalException as error:  # it was passed on
            if words := words_in(Path(aside)):
                raise words.error(named=False) from None
            if logs is not None:  # where nobody reads what the first process has told
                name = signal.Signals(error.sigval).name
                raise Interrupted(f"stopped by {name}", signal=name) from None
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


def is_host(endpoint: str, address: str | None) -> bool:
    """Returns whether this process holds the place where all meet; if not, waits until it can be reached.

    It does on the machine of the endpoint, if the port is free. torch would wait without an end for something else that
    has the port and does not answer.

    Args:
        endpoint: HOST:PORT.
        address: This machine's, as the endpoint's sees it.

    Raises:
        ConfigError: They cannot be.
    """
    host, _, port = endpoint.rpartition(":") if ":" in endpoint else (endpoint, "", str(_PORT))
    with contextlib.suppress(OSError, ValueError):
        if socket.gethostbyname(host) == address:
            socket.create_server((host, int(port))).close()
            return True
    child = os.fork()  # a call of torch's that hangs in a thread could not be left
    if not child:
        _connect(host, port)
    end = time.monotonic() + _REACH_SECONDS + 1
    while time.monotonic() < end:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended and status:
            break
        if ended:
            return False
        time.sleep(0.05)
    else:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    raise _unreachable(endpoint)


def _connect(host: str, port: str) -> NoReturn:
    """Connects to the store at an endpoint, and ends this process: with 0 if there is one."""
    from torch._C._distributed_c10d import TCPStore

    code = 1
    with contextlib.suppress(BaseException):
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # torch's own words on it
        patience = datetime.timedelta(seconds=_REACH_SECONDS)
        TCPStore(host, int(port), timeout=patience, wait_for_workers=False)
        code = 0
    os._exit(code)


def _unreachable(endpoint: str | None) -> ConfigError:
    message = f"no process of this run could be reached at {endpoint} within {_REACH_SECONDS} s"
    fix = "name a machine that runs the command too, and a port of it that is free and not behind a firewall"
    return ConfigError(Problem("--rdzv-endpoint", message, fix))


def _interface_of(address: str) -> str | None:
    """The network interface that has an address, which gloo would otherwise guess from the machine's name."""
    import psutil

    for name, addresses in psutil.net_if_addrs().items():
        if any(each.address == address for each in addresses):
            return name
    return None


def _exit_code(error: BaseException, notify: Callable[[str], object], words: Words | None, done: bool) -> int:
    """The exit code of processes that failed: that of the first one that could end by itself, which has told why.

    It is 0 where one was killed on its way out.

    Args:
        error: The agent's, with the failures in the order in which it saw them.
        notify: Gets a message where all was done.
        words: What a process has left to say that a signal has ended.
        done: Whether all was done and said.
    """
    failures = error.failures  # pyright: ignore[reportAttributeAccessIssue]
    codes = {rank: failure.exitcode for rank, failure in failures.items()}
    rank, code = next(iter(codes.items()))
    own = [code for code in codes.values() if code > 0]
    if words is not None and code > 0:
        raise words.error(named=True)
    if own and words is None:
        return own[0]
    name = signal.Signals(-code).name if code < 0 else f"exit code {code}"
    if done:
        notify(f"warning: rank {rank} was ended by {name} after all was done.")
        return 0
    raise LostRankError(f"rank {rank} was ended by {name}. {AGAIN}", [rank])
