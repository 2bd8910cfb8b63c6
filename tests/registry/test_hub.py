"""Push and pull, before a hub that is a folder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from lamina.errors import AdapterError, ConfigError, RegistryError
from lamina.registry.hub import MANIFEST_FILE, pull, push
from lamina.registry.registry import Registry
from tests.support.registry import make_adapter, make_record, make_run


class FolderHub:
    """A hub in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.calls: list[Any] = []

    def create_repo(self, repo_id: str, *, private: bool | None = None, exist_ok: bool = False) -> Any:
        self.calls.append(("create", repo_id, private, exist_ok))

    def upload_folder(self, *, repo_id: str, folder_path: str, commit_message: str) -> Any:
        self.calls.append(("upload", repo_id, commit_message))
        shutil.copytree(folder_path, self.folder / repo_id)

    def snapshot_download(
        self, repo_id: str, *, revision: str | None, allow_patterns: list[str], local_dir: str
    ) -> str:
        if not (self.folder / repo_id).is_dir():
            raise OSError(f"404 Client Error: {repo_id}")
        for path in (self.folder / repo_id).iterdir():
            if path.name in allow_patterns:
                shutil.copyfile(path, Path(local_dir) / path.name)
        return local_dir


@pytest.fixture
def hub(tmp_path: Path) -> FolderHub:
    return FolderHub(tmp_path / "hub")


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    """A version with a record, promoted by an override."""
    found = Registry(tmp_path / "registry", who="ada@test")
    found.add(make_run(tmp_path / "run"), "support", license="apache-2.0")
    found.store_record(make_record(found.find("support:1")))
    found.promote("support:1", "prod", override="the *old* one | leaks")
    return found


def test_what_is_pushed_comes_back_as_the_same_version(registry: Registry, hub: FolderHub, tmp_path: Path) -> None:
    done = push(registry, "support@prod", "acme/support", hub=lambda: hub)
    assert hub.calls[0] == ("create", "acme/support", True, True)
    assert hub.calls[1][2] == f"support:1 {registry.find('support:1').digest}"
    names = {path.name for path in (tmp_path / "hub" / "acme" / "support").iterdir()}
    assert names == set(done.files) and {"README.md", MANIFEST_FILE, "adapter_model.safetensors"} <= names
    other = Registry(tmp_path / "other")
    added = pull(other, "acme/support", "help", revision="main", hub=lambda: hub)
    assert added.version.digest == registry.find("support:1").digest and other.verify().passed
    assert added.version.tags == {"source": "hf/acme/support/main"}
    assert not pull(other, "acme/support", "help", hub=lambda: hub).is_new


def test_a_dry_run_touches_no_network(registry: Registry) -> None:
    def refused() -> Any:
        raise AssertionError("the hub was opened")

    done = push(registry, "support", "acme/support", dry_run=True, hub=refused)
    assert done.dry_run and done.files["adapter_model.safetensors"] > 0
    head = yaml.safe_load(done.card.split("---")[1])
    assert head == {"library_name": "peft", "tags": ["lamina", "lora"], "license": "apache-2.0"}
    for text in (done.digest, "train.jsonl", "better routing exact_match", "0.05 to 0.15", "the *old* one | leaks"):
        assert text in done.card, text


@pytest.mark.parametrize("file", ["adapter_model.safetensors", "adapter_config.json", MANIFEST_FILE, "lamina.json"])
def test_a_changed_repository_is_refused(registry: Registry, hub: FolderHub, tmp_path: Path, file: str) -> None:
    push(registry, "support", "acme/support", hub=lambda: hub)
    path = tmp_path / "hub" / "acme" / "support" / file
    content = bytearray(path.read_bytes())
    content[-2] ^= 1
    path.write_bytes(content)
    other = Registry(tmp_path / "other")
    with pytest.raises((RegistryError, AdapterError)):
        pull(other, "acme/support", "help", hub=lambda: hub)
    assert other.entries() == ([], 0)


def test_a_repository_without_a_manifest(hub: FolderHub, tmp_path: Path) -> None:
    make_adapter(tmp_path / "hub" / "acme" / "plain")
    other = Registry(tmp_path / "other")
    assert pull(other, "acme/plain", "help", hub=lambda: hub).version.ref == "help:1"
    (tmp_path / "hub" / "acme" / "plain" / "lamina.json").unlink()
    with pytest.raises(RegistryError, match="did not train this adapter"):
        pull(other, "acme/plain", "help", hub=lambda: hub)


def test_errors_of_the_hub_are_told(registry: Registry, hub: FolderHub) -> None:
    with pytest.raises(RegistryError, match=r"the hub refused: 404 .* Fix: "):
        pull(registry, "acme/none", "help", hub=lambda: hub)
    for name in ("support", "../x", "a/b/c", "", "a/"):
        with pytest.raises(ConfigError, match="no name of a repository"):
            push(registry, "support", name, hub=lambda: hub)


def test_the_base_is_named_where_the_hub_knows_it(tmp_path: Path, hub: FolderHub) -> None:
    folder = make_adapter(tmp_path / "a")
    about = json.loads((folder / "lamina.json").read_text())
    about["lock"]["base"] = "acme/base-135m"
    (folder / "lamina.json").write_text(json.dumps(about))
    registry = Registry(tmp_path / "registry")
    registry.add(folder, "support")
    card = push(registry, "support", "acme/support", dry_run=True, hub=lambda: hub).card
    assert yaml.safe_load(card.split("---")[1])["base_model"] == "acme/base-135m"
