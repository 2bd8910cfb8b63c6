"""Aliases of a registry that a server follows while it answers."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

import lamina
from lamina.engine.engine import Engine
from lamina.engine.store import AdapterFacts
from lamina.engine.subject import Subject, find_subject
from lamina.errors import AdapterError, ConfigError, RegistryError
from lamina.registry.registry import Registry
from lamina.server.auth import Keys
from lamina.server.follow import place
from lamina.server.logs import EventLog
from lamina.server.serve import build_service
from lamina.server.settings import ServeSettings, read_settings
from tests.support.registry import make_adapter
from tests.support.serving import KEYS, USER, FakeEngine, build, chat_body, client_of, facts_of, listening
from tests.support.training import settings as train_settings
from tests.support.waiting import wait_for

HEADERS = {"authorization": f"Bearer {USER}"}


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAMINA_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    """Three versions, and an alias at the first."""
    found = Registry(tmp_path / "registry")
    for seed in range(3):
        found.add(make_adapter(tmp_path / f"a{seed}", seed), "support")
    found.promote("support:1", "prod", override="the first")
    return found


class Loading(FakeEngine):
    """Loads what it finds, and refuses the version whose settings say so."""

    refused: int | None = None

    def load(self, name: str, path: str | Path, *, pin: bool = False) -> AdapterFacts:
        about = json.loads((Path(path) / "lamina.json").read_text())
        if about["method"]["seed"] == self.refused:
            raise AdapterError(f"{path}: does not fit the base. Fix: give another.")
        self.found[name] = replace(facts_of(name, path, about["digest"]), pinned=pin)
        return self.found[name]


def answers(engine: FakeEngine, registry: Registry, name: str, ref: str) -> bool:
    return engine.found[name].digest == registry.find(ref).adapter_digest


def test_an_alias_is_followed(registry: Registry, tmp_path: Path) -> None:
    ref, log = "support@prod", io.StringIO()
    flags = {"registry": str(tmp_path / "registry"), "follow_seconds": 0.02}
    settings = ServeSettings(adapters={ref: ref, "mine": ref, "fixed": "support:3", "a": "runs/a"}, **flags)
    placed = place(settings)
    assert placed.follower is not None
    assert [one.name for one in placed.follower.followed] == [ref, "mine"]
    assert placed.settings.adapters["a"] == "runs/a" and Path(placed.settings.adapters["fixed"]).is_dir()
    engine = Loading(names=())
    for name in (ref, "mine", "fixed"):
        engine.load(name, placed.settings.adapters[name])
    service = build(engine, log=log, adapters=placed.settings.adapters)
    service.follow(placed.follower)
    client = client_of(service)
    asked = client.post("/v1/chat/completions", json=chat_body(model=ref))
    assert asked.status_code == 200 and asked.json()["model"] == ref

    registry.promote("support:2", "prod", override="better")
    wait_for(lambda: answers(engine, registry, ref, "support:2") and answers(engine, registry, "mine", "support:2"))
    wait_for(lambda: log.getvalue().count("alias_followed") == 2)
    assert answers(engine, registry, "fixed", "support:3")
    shown = client.get("/ready").json()["following"][0]
    assert (shown["ref"], shown["version"], shown["error"]) == (ref, "support:2", None)

    engine.refused = 2
    registry.promote("support:3", "prod", override="broken")
    wait_for(lambda: log.getvalue().count("alias_failed") == 2)
    assert answers(engine, registry, ref, "support:2")
    shown = client.get("/ready").json()["following"][0]
    assert shown["version"] == "support:2" and "does not fit the base" in shown["error"]
    assert 'lamina:alias_changes_total{model_name="mine",outcome="failed"} 1.0' in client.get("/metrics").text

    engine.refused = None  # it is tried again
    wait_for(lambda: answers(engine, registry, ref, "support:3"))
    registry.rollback("support@prod")
    wait_for(lambda: answers(engine, registry, ref, "support:2") and log.getvalue().count("alias_followed") == 6)
    assert log.getvalue().count("alias_failed") == 2  # once for each name, not with every look
    assert client.get("/ready").json()["following"][0]["error"] is None
    service.close()


def test_a_registry_that_is_gone_for_a_while(registry: Registry, tmp_path: Path) -> None:
    log, place_of = io.StringIO(), tmp_path / "registry"
    settings = ServeSettings(adapters={"p": "support@prod"}, registry=str(place_of), follow_seconds=0.02)
    placed = place(settings)
    engine = Loading(names=())
    engine.load("p", placed.settings.adapters["p"])
    service = build(engine, log=log, adapters=placed.settings.adapters)
    assert placed.follower is not None
    registry.promote("support:2", "prod", override="better")
    (place_of / "blobs").rename(tmp_path / "away")
    service.follow(placed.follower)
    wait_for(lambda: "alias_failed" in log.getvalue())
    assert answers(engine, registry, "p", "support:1")
    (tmp_path / "away").rename(place_of / "blobs")
    wait_for(lambda: answers(engine, registry, "p", "support:2"))
    service.close()


def test_references_that_are_not_there(registry: Registry, tmp_path: Path) -> None:
    for ref, kind, said in (
        ("support@prd", ConfigError, "Did you mean 'prod'"),
        ("suport@prod", ConfigError, "Did you mean 'support'"),
    ):
        with pytest.raises(kind, match=said):
            place(ServeSettings(adapters={"x": ref}, registry=str(tmp_path / "registry")))
    with pytest.raises(RegistryError, match="there is no registry"):
        place(ServeSettings(adapters={"x": "support@prod"}, registry=str(tmp_path / "none")))
    assert not (tmp_path / "none").exists()


def test_settings_take_references_as_names() -> None:
    found = read_settings(None, {"model": "m", "adapters": {"support@prod": "support@prod", "support:7": "support:7"}})
    assert set(found.adapters) == {"support@prod", "support:7"}


@pytest.fixture(scope="module")
def versions(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    """Two runs that were really trained."""
    folder = tmp_path_factory.mktemp("versions")
    registry = Registry(folder / "registry")
    for seed in (0, 1):
        train = {"max_steps": 3, "learning_rate": 0.05}
        values = train_settings(folder, model_folder, f"run{seed}", train=train)
        registry.add(lamina.train({**values, "seed": seed}).path, "support")
    registry.promote("support:1", "prod", override="the first")
    yield registry


def test_references_work_where_runs_do(
    versions: Registry, model_folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("LAMINA_REGISTRY", versions.place.shown)
    digest = versions.find("support:1").adapter_digest
    assert lamina.load("support@prod").adapter.digest == digest
    subject = find_subject("support:1")
    assert subject.adapter is not None and subject.adapter[0] == "support:1"
    assert lamina.merge("support@prod", tmp_path / "merged").certificate.passed
    with pytest.raises(ConfigError, match="its newest is support:2"):
        lamina.load("support:9")


def test_running_answers_finish_on_the_old_version(versions: Registry, model_folder: Path) -> None:
    log = io.StringIO()
    flags: Any = {"registry": versions.place.shown, "follow_seconds": 0.05, "port": 0, "dtype": "float32"}
    placed = place(ServeSettings(adapters={"support@prod": "support@prod"}, **flags))
    assert placed.follower is not None
    with Engine(str(model_folder), dict(placed.settings.adapters), dtype="float32") as engine:
        subject = Subject(str(model_folder), "tiny")
        service = build_service(engine, subject, placed.settings, Keys(KEYS), EventLog(log))
        service.follow(placed.follower)
        with listening(service) as (url, _):
            body = {"model": "support@prod", "prompt": "red green", "max_tokens": 8, "temperature": 0, "n": 1}

            def ask() -> dict[str, Any]:
                answer = httpx.post(f"{url}/v1/completions", json=body, headers=HEADERS, timeout=30)
                assert answer.status_code == 200, answer.text
                return answer.json()

            first = ask()
            versions.promote("support:2", "prod", override="better")
            seen = {first["system_fingerprint"]}
            while "alias_followed" not in log.getvalue():
                seen.add(ask()["system_fingerprint"])  # no request fails meanwhile
            second = ask()
            assert second["system_fingerprint"] != first["system_fingerprint"]
            assert seen <= {first["system_fingerprint"], second["system_fingerprint"]}
            versions.rollback("support@prod")
            wait_for(lambda: log.getvalue().count("alias_followed") == 2)
            assert ask()["choices"][0]["text"] == first["choices"][0]["text"]
            assert ask()["system_fingerprint"] == first["system_fingerprint"]


def test_a_colleague_serves_the_same_answers(
    versions: Registry, model_folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """One file is handed on; what answers elsewhere has the same digests, and says the same."""
    versions.export(["support"], tmp_path / "support.tar")
    with Registry(tmp_path / "theirs") as theirs:
        assert theirs.import_archive(tmp_path / "support.tar", aliases=True).aliases == ["support@prod"]
    body = {"prompt": "red green", "max_tokens": 12, "temperature": 0, "logprobs": 2}
    said = []
    for where in (versions.place.shown, str(tmp_path / "theirs")):
        monkeypatch.setenv("LAMINA_CACHE", str(tmp_path / f"cache{len(said)}"))
        flags: Any = {"registry": where, "port": 0, "dtype": "float32"}
        names = ("support@prod", "support:2")
        placed = place(ServeSettings(adapters={name: name for name in names}, **flags))
        with Engine(str(model_folder), dict(placed.settings.adapters), dtype="float32") as engine:
            service = build_service(
                engine, Subject(str(model_folder), "tiny"), placed.settings, Keys(KEYS), EventLog(io.StringIO())
            )
            with listening(service) as (url, _):
                answers = [
                    httpx.post(f"{url}/v1/completions", json={**body, "model": name}, headers=HEADERS, timeout=60)
                    for name in names
                ]
                digests = {facts.name: facts.digest for facts in engine.loaded()}
        said.append((digests, [(a.json()["choices"], a.json()["system_fingerprint"]) for a in answers]))
    assert said[0] == said[1]
    assert said[0][0] == {name: versions.find(name).adapter_digest for name in names}
    assert said[0][1][0] != said[0][1][1], "the two versions differ"
