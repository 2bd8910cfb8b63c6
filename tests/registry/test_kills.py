"""`kill -9` at random moments, two processes at once: the registry stays whole, and what was told is so."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from lamina.errors import ConflictError, EvidenceError, LaminaError
from lamina.registry.registry import Registry
from tests.support.postgres import Postgres
from tests.support.registry import make_adapter, make_record
from tests.support.registry_kills import kill_often


@pytest.fixture(params=["sqlite", "postgres"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where an empty registry is, in each kind of database."""
    if request.param == "sqlite":
        return str(tmp_path / "registry")
    postgres: Postgres = request.getfixturevalue("postgres")
    return postgres.new_database(tmp_path / "blobs")


def test_kills(place: str, tmp_path: Path) -> None:
    found = kill_often(place, tmp_path / "work", 20, seed=0)
    assert found.problems == [] and found.kills == 20
    assert found.done.get("add", 0) > 5 and found.done.get("promote", 0) > 5, found.done


@pytest.mark.slow
def test_three_hundred_kills(place: str, tmp_path: Path) -> None:
    found = kill_often(place, tmp_path / "work", 300, seed=1)
    assert found.problems == [] and found.kills == 300
    kinds = {"add", "promote", "alias", "rollback", "gc", "import", "folder"}
    assert kinds <= found.done.keys(), found.done


def test_two_promote_at_once_and_one_is_told(place: str, tmp_path: Path) -> None:
    with Registry(place) as registry:
        for seed in range(3):
            registry.add(make_adapter(tmp_path / f"a{seed}", seed), "support")
        one = registry.find("support:1")
        for number in (2, 3):
            registry.store_record(make_record(registry.find(f"support:{number}"), one))
        registry.promote("support:1", "prod", override="the first")
        for _ in range(10):
            with ThreadPoolExecutor(2) as pool:
                ended = list(pool.map(lambda number: _promoted(place, number), (2, 3)))
            won = [number for number, error in zip((2, 3), ended, strict=True) if error is None]
            assert len(won) == 1, ended
            assert registry.find("support@prod").number == won[0]
            lost = next(error for error in ended if error is not None)
            assert isinstance(lost, ConflictError | EvidenceError) and "support" in str(lost)
            registry.rollback("support@prod")
        assert registry.find("support@prod").number == 1
        assert registry.verify().passed


def _promoted(place: str, number: int) -> LaminaError | None:
    with Registry(place, who=f"worker-{number}") as registry:
        try:
            registry.promote(f"support:{number}", "prod")
        except LaminaError as error:
            return error
    return None


def test_the_same_added_by_many_processes_at_once_is_one_version(place: str, tmp_path: Path) -> None:
    make_adapter(tmp_path / "a")
    code = f"import lamina; print(lamina.Registry({place!r}).add({str(tmp_path / 'a')!r}, 'support').version.ref)"
    workers = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(4)]
    assert {worker.communicate()[0].strip() for worker in workers} == {"support:1"}
    with Registry(place) as registry:
        assert len(registry.versions("support")) == 1 and registry.verify().passed
