"""`--on ray`: tasks of a Ray cluster: the one at RAY_ADDRESS, the one that runs here, or one of this machine alone.

Ray places each task on a node with that many free CPUs and GPUs. It would retry lost tasks itself, but in silence; the
fleet does so, and says it (`max_retries=0`).
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lamina.config.section import Section
from lamina.errors import FleetError
from lamina.fleet.process import run_task
from lamina.fleet.task import Ended, Resources, Task
from lamina.packages import needed_package

# A node has the environment that it was started with. These are the settings of this process that a task needs too.
_FORWARDED = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "LAMINA_CACHE")


class RayOptions(Section):
    """What `--option` sets."""

    address: str | None = None
    """Address of the cluster, such as `10.0.0.1:6379`; by default RAY_ADDRESS, or the cluster of this machine."""

    autoscaling: bool = False
    """Whether the cluster adds nodes on demand, so that a task may wait for a node that does not exist yet."""


OPTIONS = RayOptions


class RayExecutor:
    """Submits each task as a Ray task.

    Args:
        ray: The package, connected to a cluster.
        autoscaling: Whether a task may wait for a node that does not exist yet.
    """

    def __init__(self, ray: Any, autoscaling: bool) -> None:
        self._ray = ray
        self._waits = autoscaling
        self._handles: list[RayHandle] = []

    def submit(self, task: Task, resources: Resources) -> RayHandle:
        """Submits a task.

        Raises:
            FleetError: No node has so many CPUs and GPUs.
        """
        wanted = {"CPU": resources.cpus, "GPU": resources.gpus or 0}
        fits = any(all(node.get(kind, 0) >= count for kind, count in wanted.items()) for node in self._nodes())
        if not fits and not self._waits:
            raise FleetError(
                f"{task.name}: no node of the Ray cluster has {wanted['CPU']} CPUs and {wanted['GPU']} GPUs. Fix: give "
                "a smaller --cpus or --gpus, or add a node; if the cluster adds them itself, --option autoscaling=true."
            )
        self._waits = True  # from now on for a node that is lost, too
        remote = self._ray.remote(num_cpus=resources.cpus, num_gpus=resources.gpus or 0, max_retries=0)(run_task)
        environment = {name: os.environ[name] for name in _FORWARDED if name in os.environ}
        reference = remote.options(name=f"lamina {task.name}").remote(task, resources, environment)
        self._handles.append(RayHandle(self._ray, reference))
        return self._handles[-1]

    def share(self, jobs: int) -> int:
        """Returns the most CPUs with which so many tasks run at once on the nodes of the cluster; at least 1."""
        nodes = [int(node.get("CPU", 0)) for node in self._nodes()]
        fitting = (cpus for cpus in range(max(nodes, default=1), 1, -1) if sum(node // cpus for node in nodes) >= jobs)
        return next(fitting, 1)

    def end(self) -> None:
        """Cancels all tasks that have not ended."""
        for handle in self._handles:
            if handle.poll() is None:
                handle.stop()

    def _nodes(self) -> list[dict[str, float]]:
        return [node["Resources"] for node in self._ray.nodes() if node["Alive"]]


class RayHandle:
    """A Ray task."""

    def __init__(self, ray: Any, reference: Any) -> None:
        self._ray = ray
        self._reference = reference
        self._ended: Ended | None = None

    def poll(self) -> Ended | None:
        """Returns how the task ended; None while it waits or runs."""
        if self._ended is None and self._ray.wait([self._reference], timeout=0)[0]:
            self._ended = self._result()
        return self._ended

    def stop(self) -> None:
        """Raises KeyboardInterrupt in the task, which lets its process save a checkpoint."""
        self._ray.cancel(self._reference, force=False, recursive=False)

    def _result(self) -> Ended:
        errors = self._ray.exceptions
        try:
            return self._ray.get(self._reference)
        except (errors.RayTaskError, errors.RuntimeEnvSetupError, errors.TaskUnschedulableError) as error:
            return Ended("failed", message=_last_line(error))
        except errors.RayError as error:  # the node, the worker, or its memory
            return Ended("lost", message=f"{type(error).__name__}: {_first_line(error)}")


@contextlib.contextmanager
def start(options: RayOptions, folder: Path) -> Iterator[RayExecutor]:
    """Connects to a cluster, or starts one on this machine, and leaves it after the block.

    Raises:
        FleetError: There is no cluster at the address.
    """
    ray = needed_package("ray", "ray", "--on", "ray")
    try:
        ray.init(
            address=options.address,
            log_to_driver=False,
            logging_level=logging.ERROR,
            include_dashboard=None if options.address or "RAY_ADDRESS" in os.environ else False,
        )
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        where = options.address or os.environ.get("RAY_ADDRESS", "this machine")
        message = f"Ray cannot be used at {where}: {_first_line(error)}. Fix: check `ray status` and --option address."
        raise FleetError(message) from error
    executor = RayExecutor(ray, options.autoscaling)
    try:
        yield executor
    finally:
        with contextlib.suppress(ConnectionError, RuntimeError):  # the cluster has gone
            executor.end()
        ray.shutdown()


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "")[:300]


def _last_line(error: Exception) -> str:
    return next((line.strip() for line in reversed(str(error).splitlines()) if line.strip()), "")[:300]
