"""Adapters that come and go over HTTP: inside the root alone, by names that are names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lamina.errors import ConfigError, Problem
from tests.support.serving import ADMIN, BASE, FakeEngine, build, chat_body, client_of

URL = "/v1/adapters"


def served(root: Path | None, engine: FakeEngine | None = None, **settings: Any) -> Any:
    chosen = {} if root is None else {"adapter_root": str(root)}
    return client_of(build(engine, **chosen, **settings), ADMIN)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A root with two runs, and what must not be reached from it."""
    for name in ("root/one", "root/deep/two", "outside", "root/bad", "root/links", "root2"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "adapter_config.json").write_text("{}")
    (tmp_path / "root" / "out").symlink_to(tmp_path / "outside")
    (tmp_path / "root" / "links" / "adapter").symlink_to(tmp_path / "outside")
    (tmp_path / "root" / "inner").symlink_to(tmp_path / "root" / "one")
    (tmp_path / "root" / "loop").symlink_to(tmp_path / "root" / "loop")
    return tmp_path / "root"


def test_an_adapter_is_loaded_pinned_and_taken_away(root: Path) -> None:
    client = served(root)
    loaded = client.post(URL, json={"name": "new", "path": "one"})
    assert loaded.status_code == 200, loaded.text
    assert loaded.json().items() >= {"name": "new", "digest": "sha256:new", "certificate": None}.items()
    assert loaded.json()["path"] == str(root / "one")
    assert client.post("/v1/chat/completions", json=chat_body(model="new")).json()["model"] == "new"
    assert [entry["name"] for entry in client.get(URL).json()["data"]] == ["a", "b", "new"]
    assert client.patch(f"{URL}/new", json={"pin": True}).json()["pinned"] is True
    assert client.patch(f"{URL}/new", json={"pin": False}).json()["pinned"] is False
    gone = client.delete(f"{URL}/new")
    assert (gone.status_code, gone.json()["deleted"]) == (200, True)
    assert client.post("/v1/chat/completions", json=chat_body(model="new")).status_code == 404
    for method in ("DELETE", "PATCH"):
        missing = client.request(method, f"{URL}/new", json={"pin": True})
        assert missing.status_code == 404
        assert missing.json()["error"]["code"] == "adapter_not_found"


@pytest.mark.parametrize("path", ["one", "deep/two", "./deep/../one", "inner"])
def test_paths_inside_the_root(root: Path, path: str) -> None:
    assert served(root).post(URL, json={"name": "new", "path": path, "pin": True}).json()["pinned"] is True
    assert served(root).post(URL, json={"name": "new", "path": str(root / path)}).status_code == 200


@pytest.mark.parametrize(
    "path",
    [
        "../outside",
        "/etc",
        "..",
        ".",
        "",
        "one/../../outside",
        "out",
        "links",
        "loop",
        "one/adapter_config.json",
        "missing",
        "~",
        "one\0",
        "x" * 5000,
        "../root2",
        "https://example.org/adapter",
    ],
)
def test_paths_that_lead_out_of_the_root(root: Path, path: str) -> None:
    engine = FakeEngine()
    for each in (path, *([str(root / path)] if path and "\0" not in path and "//" not in path else [])):
        if each.startswith(str(root)) and path in ("/etc", ""):
            continue
        refused = served(root, engine).post(URL, json={"name": "new", "path": each})
        assert refused.status_code == 400, each
        assert refused.json()["error"]["param"] == "path"
    assert engine.adapters == ["a", "b"]


def test_without_a_root_nothing_is_loaded() -> None:
    refused = served(None).post(URL, json={"name": "new", "path": "/tmp"})
    assert refused.status_code == 403
    assert "--adapter-root" in refused.json()["error"]["message"]


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../x", "a/b", "-a", ".a", "a b", "a\n", "é", "x" * 129, "a\0", 5, None]
)
def test_names_that_are_none(root: Path, name: Any) -> None:
    refused = served(root).post(URL, json={"name": name, "path": "one"})
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == "name"


def test_names_that_are_taken_by_others(root: Path) -> None:
    client = served(root, aliases={"live": {"weights": {"a": 1}}}, shadow=[{"of": "a", "to": "b", "file": "/dev/null"}])
    for name in (BASE, "live"):
        assert client.post(URL, json={"name": name, "path": "one"}).json()["error"]["param"] == "name"
    for name, user in (("a", "the alias 'live'"), ("b", "the shadow of 'a'")):
        kept = client.delete(f"{URL}/{name}")
        assert kept.status_code == 400
        assert user in kept.json()["error"]["message"]
    # The same name anew is how an adapter is replaced.
    assert client.post(URL, json={"name": "a", "path": "one"}).status_code == 200


def test_an_adapter_that_is_refused_says_why(root: Path) -> None:
    refused = served(root).post(URL, json={"name": "new", "path": "bad"})
    assert refused.status_code == 400
    error = refused.json()["error"]
    assert (error["param"], error["code"]) == ("path", "adapter_refused")
    assert "is no adapter" in error["message"]


def test_an_adapter_that_another_took_away_meanwhile() -> None:
    engine = FakeEngine()

    def gone(name: str, wait: float | None = None) -> Any:
        raise ConfigError(Problem("request.adapter", f"{name!r} is gone"))

    engine.unload = gone  # type: ignore[method-assign]
    assert served(None, engine).delete(f"{URL}/a").status_code == 404
