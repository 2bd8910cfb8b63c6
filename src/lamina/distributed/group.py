"""`Group`: the world of several processes, over torch's process group.

Whoever starts the processes (`lamina train --nproc`, torchrun, `accelerate launch`, a Kubernetes TrainJob) sets RANK,
WORLD_SIZE, MASTER_ADDR and MASTER_PORT. Numbers and decisions travel over gloo, also where the tensors are on GPUs, and
each exchange has a name: when a process is late or gone, the others say which one, and what it did not reach.

An error in one process ends all of them with one message. That process writes the error to the store that the launcher
holds and closes its connections, so the others, waiting in an exchange, notice, read the error, and raise it too.
"""

from __future__ import annotations

import atexit
import contextlib
import datetime
import itertools
import math
import socket
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from functools import partial
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.distributed_c10d import PrefixStore, Store

from lamina.distributed.failure import AGAIN, Failure, LostRankError, PeerError, release_frames
from lamina.distributed.ranks import restarts
from lamina.distributed.signs import Signs
from lamina.distributed.watched import watched
from lamina.distributed.world import World
from lamina.errors import LaminaError, RunError

T = TypeVar("T")

# Seconds between two signs of life, and after how many without one a process seems to be gone.
_BEAT = 0.4
_SILENCE = 5.0
# The same before the first exchange, where loading a model or reading data may keep a process from giving signs.
_SILENCE_AT_START = 30.0

# Seconds for processes that are all there to connect to each other.
_CONNECT_SECONDS = 60.0

# Seconds that the first process has to tell of an error: it may be amid a step, or wait for who waits for it.
_PATIENCE = 10.0

# Seconds to wait for the error of a process whose connection closed, and for signs of life.
_GRACE = 2.0
_POLL = 0.02

# What torch says of a connection that broke.
_BROKEN = ("connection", "peer", "timed out", "socket")


class Group(World):
    """One of several processes.

    Args:
        store: Key-value store that all processes share.
        rank: Which process this is.
        size: How many there are.
        local_size: How many of them share this machine.
        backend: Of torch's process group; None if the caller has opened one.
        local_rank: Which process of this machine this is; their ranks follow each other.
        meeting: How often the same processes have met before; what they wrote to the store then is not read.
    """

    def __init__(
        self,
        store: Store,
        rank: int,
        size: int,
        local_size: int,
        backend: str | None = "gloo",
        local_rank: int = 0,
        meeting: int = 0,
    ) -> None:
        self.rank, self.size, self.local_size = rank, size, local_size
        self._first_here = rank - local_rank
        self.communication_seconds = 0.0
        self.host = socket.gethostname()
        prefix = f"lamina/{restarts()}/{meeting}"
        self._store = PrefixStore(prefix, store)
        # torch waits in the store for the others, and nobody else is served through the same connection meanwhile.
        self._store_of_torch = PrefixStore(f"{prefix}/group", store.clone())  # pyright: ignore[reportAttributeAccessIssue]
        self._backend = backend
        self._pg: dist.ProcessGroup | None = None
        self._team: dist.ProcessGroup | None = None
        self._exchanges = 0
        self._connections = itertools.count()
        self._handled = sys.exc_info()[1]  # where a script trains again after an error
        self._store.set(f"host/{rank}", self.host)
        self._ended = threading.Event()
        self._life = threading.Thread(target=self._beat, daemon=True)
        self._life.start()
        atexit.register(self._end)  # before the interpreter takes its threads down

    def gather(self, value: T, what: str) -> list[T]:
        everybody: list[Any] = [None] * self.size
        with self.exchanging(what) as group:
            dist.all_gather_object(everybody, (what, value), group=group)
        reached = {name: rank for rank, (name, _) in reversed(list(enumerate(everybody)))}
        if len(reached) > 1:
            shown = ", ".join(f"{self.host_of(rank)} at {name!r}" for name, rank in reached.items())
            raise RunError(
                f"the processes went different ways: {shown}. Fix: this is a bug; report it with the config."
            )
        return [value for _, value in everybody]

    def add_up(self, tensor: torch.Tensor) -> None:
        with self.exchanging("adding up the gradients") as group:
            dist.all_reduce(tensor, op=dist.ReduceOp.SUM, group=group if tensor.device.type == "cpu" else None)
            if tensor.device.type == "cuda":
                torch.cuda.synchronize(tensor.device)

    def form_teams(self, size: int) -> None:
        """Lets every `size` processes in a row work on the same micro-batches."""
        soon = datetime.timedelta(seconds=min(_CONNECT_SECONDS, self.timeout))
        with self.exchanging("forming teams"):
            for first in range(0, self.size, size):
                ranks = list(range(first, first + size))
                team = self._connected(partial(dist.new_group, ranks, timeout=soon))
                if first <= self.rank < first + size:
                    assert isinstance(team, dist.ProcessGroup)
                    team.set_timeout(datetime.timedelta(seconds=self.timeout))
                    self._team = team
        self.team_size = size

    def exchange(self, tensor: torch.Tensor) -> torch.Tensor:
        found = torch.empty_like(tensor)
        with self.exchanging("exchanging heads"):
            dist.all_to_all_single(found, tensor, group=self._team)
        return found

    def copy_from_first(self, tensors: Iterable[torch.Tensor]) -> None:
        for tensor in tensors:
            with self.exchanging("copying the adapter") as group:
                whole = tensor.detach().contiguous()
                dist.broadcast(whole, src=0, group=group if tensor.device.type == "cpu" else None)
                with torch.no_grad():
                    tensor.copy_(whole)

    def once(self, work: Callable[[], T], what: str) -> T:
        box: list[Any] = [None]
        failure: Failure | None = None
        error: Exception | None = None
        if self.is_first:
            try:
                box = [work()]
            except Exception as raised:
                error, failure = raised, Failure.of(raised, self.rank, self.host)
        failure = self.gather(failure, what)[0]
        if error is not None:
            raise error
        if failure is not None:
            raise PeerError(failure)
        with self.exchanging(what) as group:
            dist.broadcast_object_list(box, src=0, group=group)
        return box[0]

    def first_here(self, work: Callable[[], T], what: str) -> T:
        done = f"done/{what}/{self._first_here}"
        if self.rank == self._first_here:
            found = work()
            self._store.set(done, "1")
            return found
        for _ in self._waiting_for(done, self._first_here):
            if failure := self.first_failure():
                raise PeerError(failure)
        return work()

    def mesh(self, parts: int | None = None) -> DeviceMesh:
        """Returns the processes as a mesh for a sharded base.

        Args:
            parts: Number of processes that share one base, a divisor of all; None for all of them.
        """
        device = "cuda" if torch.cuda.is_available() else "cpu"
        with self.exchanging("dividing the base"):
            parts = parts or self.size
            shape, names = (self.size // parts, parts), ("copy", "shard")
            if parts == self.size:
                shape, names = (self.size,), ("shard",)
            return self._connected(partial(init_device_mesh, device, shape, mesh_dim_names=names))

    def host_of(self, rank: int) -> str:
        host = self._read(f"host/{rank}") or "unknown host"
        return f"rank {rank} ({host})"

    def explain(self, error: Exception) -> Exception:
        words = str(error).lower()
        broken = isinstance(error, RuntimeError) and any(word in words for word in _BROKEN)
        return self._explain("running the model", error) if broken else error

    def report(self, error: BaseException) -> None:
        """Tells the others of the error that ends this process, unless one has told already, and hangs up."""
        failure = Failure.of(error, self.rank, self.host)
        with contextlib.suppress(RuntimeError):
            self._store.compare_set("failure", "", failure.as_json())
        # What the error passed through still holds the group, whose connections would stay open as long as that does.
        release_frames(error, self._handled)
        self.leave()

    def first_failure(self, wait: float = 0.0) -> Failure | None:
        """Returns the error that ended the first process that failed; None if there is none within `wait` seconds."""
        end = time.monotonic() + wait
        while True:
            if text := self._read("failure"):
                return Failure.from_json(text)
            if time.monotonic() >= end:
                return None
            time.sleep(_POLL)

    def tell(self) -> None:
        """Says that the message is on the user's screen, so that the other processes may end."""
        with contextlib.suppress(RuntimeError):
            self._store.set("told", "1")

    def must_tell(self, gone: Collection[int] = ()) -> bool:
        """Returns whether it is this process that tells the user of the error; if not, waits until that is done.

        It is the first one; where that is gone or does not come to it soon, the first that asks here.

        Args:
            gone: Processes that are known to be gone.
        """
        if not self.is_first and 0 not in gone and self._was_told_by(0, _PATIENCE):
            return False
        try:
            teller = int(self._store.compare_set("teller", "", str(self.rank)))
        except RuntimeError:  # the store is gone, so that nobody can agree on anything
            return True
        return teller == self.rank or not self._was_told_by(teller)

    def _was_told_by(self, rank: int, patience: float = math.inf) -> bool:
        end = time.monotonic() + patience
        for _ in self._waiting_for("told", rank):
            if time.monotonic() >= end:
                break
        return bool(self._read("told"))

    def _waiting_for(self, key: str, rank: int) -> Iterator[None]:
        """Yields from time to time until a process has set a key, or seems to be gone, or the store is."""
        signs = Signs(self._read)
        while not self._read(key) and signs.silence(rank) <= _SILENCE and self._has_store():
            yield
            time.sleep(_POLL)

    def leave(self) -> None:
        """Closes the connections to the others."""
        if self._pg is not None:
            self._pg = self._team = None
            if self._backend is not None:
                # In a thread, since NCCL may wait for what will never come.
                closing = threading.Thread(target=_close, daemon=True)
                closing.start()
                closing.join(_GRACE)

    def _beat(self) -> None:
        """Shows the others that this process is alive, whatever it is waiting for."""
        with contextlib.suppress(RuntimeError):  # the store is gone
            for number in itertools.count():
                self._store.set(f"beat/{self.rank}", str(number))
                if self._ended.wait(_BEAT):
                    return

    def _end(self) -> None:
        self._ended.set()
        self._life.join(_GRACE)

    @contextlib.contextmanager
    def exchanging(self, what: str) -> Iterator[dist.ProcessGroup]:
        """Names what this process has reached, and turns a broken connection into the error behind it."""
        began = time.perf_counter()
        self._exchanges += 1
        try:
            self._store.set(f"at/{self.rank}", f"{self._exchanges} {what}")
            if self._pg is None:
                self._pg = self._open()
            yield self._pg
        except RuntimeError as error:
            raise self._explain(what, error) from error
        finally:
            self.communication_seconds += time.perf_counter() - began

    def _open(self) -> dist.ProcessGroup:
        """Opens torch's group once every process is there, or has failed before."""
        self._store.set(f"here/{self.rank}", "1")
        self._wait_for_all()
        soon = datetime.timedelta(seconds=min(_CONNECT_SECONDS, self.timeout))

        def connect() -> object:
            if self._backend is None:
                return dist.new_group(backend="gloo", timeout=soon)
            store, rank, size = self._store_of_torch, self.rank, self.size
            dist.init_process_group(self._backend, store=store, rank=rank, world_size=size, timeout=soon)
            return dist.group.WORLD

        group = self._connected(connect, _SILENCE)
        assert isinstance(group, dist.ProcessGroup)
        group.set_timeout(datetime.timedelta(seconds=self.timeout))
        return group

    def _connected(self, connect: Callable[[], T], patience: float = _SILENCE_AT_START) -> T:
        """Runs what connects the processes, and stops waiting for it where one of them is gone.

        Args:
            connect: Waits for all of them.
            patience: Seconds without a sign after which one is gone. One that is not there yet may be loading a model.
        """
        connected, signs = f"connected/{next(self._connections)}", Signs(self._read)

        def look() -> None:
            if not self._has_store():
                raise self._without_store("connecting")
            if failure := self.first_failure():
                raise PeerError(failure)
            silent = [rank for rank in range(self.size) if signs.silence(rank) > patience]
            # One that is connected may be loading a model too.
            if gone := [rank for rank in silent if not self._read(f"{connected}/{rank}")]:
                raise self._lost(gone, "there was no sign of it while all connected")

        found = watched(connect, look)
        self._store.set(f"{connected}/{self.rank}", "1")
        return found

    def _wait_for_all(self) -> None:
        end, looked, signs = time.monotonic() + self.timeout, 0.0, Signs(self._read)
        while not self._store.check([f"here/{rank}" for rank in range(self.size)]):
            if failure := self.first_failure():
                raise PeerError(failure)
            if (now := time.monotonic()) - looked > _BEAT:
                looked, missing = now, [rank for rank in range(self.size) if not self._read(f"here/{rank}")]
                silent = [rank for rank in missing if signs.silence(rank) > _SILENCE_AT_START]
                # One without even a name is still to come.
                if gone := [rank for rank in silent if self._read(f"host/{rank}")]:
                    raise self._lost(gone, "there was no sign of it before the start")
                if now >= end:
                    raise self._late("the start", missing)
            time.sleep(_POLL)

    def _explain(self, what: str, error: Exception) -> LaminaError:
        """Finds out why an exchange failed."""
        others = [rank for rank in range(self.size) if rank != self.rank]
        beats = {rank: self._read(f"beat/{rank}") for rank in others}
        if not self._has_store():
            return self._without_store(what)
        if failure := self.first_failure(_GRACE):
            return PeerError(failure)
        behind = [rank for rank in others if int((self._read(f"at/{rank}") or "0").split()[0]) < self._exchanges]
        if "timed out" in str(error).lower() and behind:
            return self._late(what, behind)
        gone = [rank for rank in others if self._read(f"beat/{rank}") == beats[rank]]
        return self._lost(gone, f"the connection broke at {what!r}")

    def _without_store(self, what: str) -> LostRankError:
        return LostRankError(f"the process that started the others is gone: {what!r} was not reached. {AGAIN}", [])

    def _lost(self, ranks: list[int], how: str) -> LostRankError:
        named = ", ".join(map(self.host_of, ranks)) or "another process"
        return LostRankError(f"{named} is gone (killed, or its machine is down): {how}. {AGAIN}", ranks)

    def _late(self, what: str, ranks: list[int]) -> LostRankError:
        shown = "; ".join(
            f"{self.host_of(rank)} has not reached {what!r}, and was last at "
            f"{(self._read(f'at/{rank}') or '0 nothing').partition(' ')[2]!r}"
            for rank in ranks[:4]
        )
        return LostRankError(
            f"{shown}, within {self.timeout:g} s (distributed.timeout). Fix: look at what it is doing there, then "
            f"{AGAIN.removeprefix('Fix: ')}",
            ranks,
        )

    def _has_store(self) -> bool:
        try:
            self._store.check(["failure"])
        except RuntimeError:
            return False
        return True

    def _read(self, key: str) -> str:
        """Returns a value of the store; empty if there is none, or the store is gone."""
        with contextlib.suppress(RuntimeError):
            if self._store.check([key]):
                return self._store.get(key).decode()
        return ""


def _close() -> None:
    with contextlib.suppress(RuntimeError, ValueError):
        dist.destroy_process_group()
