"""`--on ray`, on a cluster of two nodes in this machine, one of which is killed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lamina.fleet.executor import Placement, start_executor
from lamina.fleet.task import Resources
from tests.support.fleet import digests, python_task, train_fleet, when_trained, write_configs

pytest.importorskip("ray")
pytestmark = pytest.mark.slow


@pytest.fixture
def cluster() -> Iterator[Any]:
    """A head without CPUs, and two nodes with one each."""
    import ray
    from ray.cluster_utils import Cluster

    found = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": 100 * 2**20}, shutdown_at_exit=False
    )
    for _ in range(2):
        found.add_node(num_cpus=1, object_store_memory=100 * 2**20)
    yield found
    ray.shutdown()
    found.shutdown()


def test_two_nodes_give_the_table_of_one_process_after_another(
    cluster: Any, tmp_path: Path, model_folder: Path
) -> None:
    paths = write_configs(tmp_path, model_folder, [1, 2, 3, 4])
    plain, _ = train_fleet(paths, tmp_path / "plain", Placement(cpus=1))
    options = (f"address={cluster.address}",)
    report, said = train_fleet(paths, tmp_path / "out", Placement("ray", jobs=2, options=options))
    assert report.settings == {"on": "ray", "jobs": 2, "threads": 1, "gpus": None}
    assert {row.threads for row in report.rows} == {1}
    assert digests(report) == digests(plain)
    assert [row.eval_loss for row in report.rows] == [row.eval_loss for row in plain.rows]
    again, said = train_fleet(paths, tmp_path / "out", Placement("ray", jobs=2, options=options))
    assert sum("finished before" in line for line in said) == 4
    assert again.rows == report.rows


def test_a_killed_node_costs_one_resume(cluster: Any, tmp_path: Path, model_folder: Path) -> None:
    paths = write_configs(tmp_path, model_folder, [2, 3, 4])
    plain, _ = train_fleet(paths, tmp_path / "plain", Placement(cpus=1))

    def kill_node(trainer: int) -> None:
        import psutil

        raylets = {parent.pid for parent in psutil.Process(trainer).parents() if "raylet" in parent.name()}
        (node,) = [node for node in cluster.worker_nodes if _raylet(node) in raylets]
        cluster.remove_node(node, allow_graceful=False)

    killing = when_trained(tmp_path / "out" / "runs" / "r2", 3, kill_node)
    placement = Placement("ray", jobs=2, options=(f"address={cluster.address}",))
    report, said = train_fleet(paths, tmp_path / "out", placement)
    killing.join(1)
    assert digests(report) == digests(plain)
    assert [row.retries for row in report.rows] == [1, 0, 0], said
    assert any("r2: lost" in line and "retry 1 of 3" in line for line in said)


def test_more_cpus_than_a_node_has_are_told(cluster: Any, tmp_path: Path) -> None:
    from lamina.errors import FleetError

    options = (f"address={cluster.address}",)
    with start_executor(Placement("ray", options=options), tmp_path) as executor:
        assert [executor.share(jobs) for jobs in (1, 2, 5)] == [1, 1, 1]
        with pytest.raises(FleetError, match="no node of the Ray cluster has 2 CPUs"):
            executor.submit(python_task(tmp_path, "1"), Resources(cpus=2))
    assert "RAY_ADDRESS" not in os.environ


def _raylet(node: Any) -> int:
    return node.all_processes["raylet"][0].process.pid
