"""Which executors there are, their options, and how CPUs are shared."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from lamina import plugins
from lamina.errors import ConfigError
from lamina.fleet.executor import Placement, check_placement, start_executor
from tests.support.fleet import Scripted


def test_the_executors() -> None:
    assert list(plugins.members("executors")) == ["local", "ray", "slurm"]


@pytest.mark.parametrize(
    ("placement", "words"),
    [
        (Placement("lokal"), ("--on", "'lokal' is not one of local, ray, slurm", "Did you mean 'local'?")),
        (Placement("local", options=("partition=gpu",)), ("--option.partition", "has none")),
        (Placement("slurm", options=("partitoin=gpu",)), ("no such option", "Did you mean 'partition'?")),
        (Placement("slurm", options=("time=soon",)), ("--option.time", "'soon' is not allowed")),
        (Placement("slurm", options=("time",)), ("--option", "is not KEY=VALUE")),
    ],
)
def test_wrong_ones_are_told(placement: Placement, words: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError) as caught:
        check_placement(placement)
    for word in words:
        assert word in str(caught.value)


def test_an_account_may_be_a_number_and_a_setup_a_list() -> None:
    check_placement(Placement("slurm", options=("account=123", "setup=[module load cuda]", "cluster=local")))


@pytest.mark.parametrize(("on", "package"), [("ray", "ray"), ("slurm", "submitit")])
def test_what_is_not_installed_names_its_extra(
    on: str, package: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, package, None)  # as if it were not installed
    with pytest.raises(ConfigError) as caught, start_executor(Placement(on), tmp_path):
        pass
    assert f"needs the package {package}" in str(caught.value)
    assert f"pip install 'lamina[{on}]'" in str(caught.value)


@pytest.mark.parametrize(
    ("given", "tasks", "threads", "expected"),
    [
        (Placement(), 4, None, (1, 8)),
        (Placement(jobs=2), 4, None, (2, 4)),
        (Placement(jobs=16), 3, None, (3, 2)),
        (Placement("ray"), 4, None, (4, 2)),
        (Placement("slurm"), 20, None, (20, 1)),
        (Placement(jobs=2, cpus=7), 4, "1", (2, 7)),
        (Placement(jobs=2), 4, "1", (2, 1)),
        (Placement(jobs=2), 4, "64", (2, 4)),
    ],
)
def test_cpus_are_shared_by_those_that_run_at_once(
    given: Placement, tasks: int, threads: str | None, expected: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if threads is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", threads)
    settled = given.settled(Scripted(), tasks)
    assert (settled.jobs, settled.resources.cpus) == expected
