"""Models on the hub: revisions, folders, tokens that stay secret, and code that runs only when it is allowed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub.errors import LocalEntryNotFoundError

import lamina
from lamina.config import load_config
from lamina.config.hub import parse_hub
from lamina.errors import ConfigError, ModelError
from lamina.models import source
from lamina.models.load import load_base
from lamina.models.source import ModelSource, find_model
from tests.support.models_zoo import build_model, build_tokenizer
from tests.support.training import settings

OWN_CODE = """
from transformers import LlamaConfig, LlamaForCausalLM


class OwnConfig(LlamaConfig):
    model_type = "own_llama"


class OwnForCausalLM(LlamaForCausalLM):
    config_class = OwnConfig
"""


class Hub:
    """A hub with one repository in two revisions; `main` has the model, `v1` has it in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.asked, self.local = folder, list[dict[str, Any]](), set[str]()
        for place in ("main", "v1/small"):
            build_model("llama", vocab_size=259).save_pretrained(folder / place)
            build_tokenizer().save_pretrained(folder / place)

    def snapshot_download(self, repo_id: str, **more: Any) -> str:
        revision = more.get("revision") or "main"
        if more.get("local_files_only"):
            if revision not in self.local:
                raise LocalEntryNotFoundError("not here")
        else:
            self.asked.append({"repo_id": repo_id, **more})
            if not (self.folder / revision).is_dir():
                raise LocalEntryNotFoundError("no such revision")
            self.local.add(revision)
        return str(self.folder / revision)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    hub = Hub(tmp_path / "hub")
    monkeypatch.setattr(source, "snapshot_download", hub.snapshot_download)
    return hub


def test_a_revision_and_a_folder_are_asked_for_once(hub: Hub) -> None:
    found = find_model("org/name@v1:small")
    assert found.folder == hub.folder / "v1" / "small"
    assert found.public_name == "org/name" and found.revision == "v1"
    (asked,) = hub.asked
    assert asked["revision"] == "v1" and "small/*.safetensors" in asked["allow_patterns"]
    assert not any(pattern.endswith(".py") for pattern in asked["allow_patterns"])
    assert find_model("org/name@v1:small").folder == found.folder
    assert len(hub.asked) == 1
    assert find_model("org/name").folder == hub.folder / "main"


def test_what_is_not_there_is_said(hub: Hub) -> None:
    with pytest.raises(ModelError, match=r"org/name@v9: is not in the local cache and could not be downloaded"):
        find_model("org/name@v9")
    with pytest.raises(ModelError, match=r"the folder 'large' has no config\.json"):
        find_model("org/name@v1:large")


@pytest.mark.parametrize("ref", ["org/name@", "org/name:../x", "a/b/c@v1", "@v1", "org/name@v 1"])
def test_other_forms_are_no_names(ref: str) -> None:
    assert parse_hub(ref) is None


def test_keys_beside_model_are_parts_of_its_name() -> None:
    values = {"model": "org/name", "data": {"train": "x"}}
    assert load_config({**values, "revision": "v1", "subfolder": "small"}).model == "org/name@v1:small"
    assert load_config({**values, "revision": None}).model == "org/name"
    assert load_config({**values, "model": "org/name@v1", "revision": "v1"}).model == "org/name@v1"
    for wrong, message in (
        ({"model": "org/name@v2", "revision": "v1"}, "set only one of them"),
        ({"model": "smollm2-135m", "revision": "v1"}, "are of a model on the hub"),
        ({"revision": 3}, "write it as text"),
    ):
        with pytest.raises(ConfigError, match=message):
            load_config({**values, **wrong})


def test_a_token_is_never_a_setting() -> None:
    with pytest.raises(ConfigError, match="HF_TOKEN") as caught:
        load_config({"model": "org/name", "data": {"train": "x"}, "token": "hf_secret123"})
    assert "hf_secret123" not in str(caught.value)


def test_an_adapter_names_the_revision_for_peft(hub: Hub, tmp_path: Path) -> None:
    values = settings(tmp_path, tmp_path, train={"max_steps": 1, "save_steps": 1, "eval_steps": 1})
    run = lamina.train({**values, "model": "org/name@v1:small"})
    content = json.loads((run.adapter / "adapter_config.json").read_text())
    assert content["base_model_name_or_path"] == "org/name" and content["revision"] == "v1"
    assert lamina.load(run.path).base.source == ModelSource("org/name@v1:small", hub.folder / "v1" / "small")


def own_model(folder: Path) -> Path:
    """A model whose class comes with it."""
    build_model("llama", vocab_size=259).save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
    (folder / "own.py").write_text(OWN_CODE)
    content = json.loads((folder / "config.json").read_text())
    auto_map = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnForCausalLM"}
    changed = {**content, "model_type": "own_llama", "architectures": ["OwnForCausalLM"], "auto_map": auto_map}
    (folder / "config.json").write_text(json.dumps(changed))
    return folder


def test_code_runs_once_it_is_allowed_and_until_it_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kernels = source.cache_folder() / "kernels"
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "kernels").symlink_to(kernels)
    monkeypatch.setenv("LAMINA_CACHE", str(tmp_path / "cache"))
    folder = own_model(tmp_path / "own")
    with pytest.raises(ModelError, match=r"own\.OwnConfig.*does not run unless you say so.*trust_remote_code: true"):
        load_base(str(folder), "float32")
    notes: list[str] = []
    base = load_base(str(folder), "float32", notify=notes.append, trust_remote_code=True)
    assert type(base.model).__name__ == "OwnForCausalLM"
    assert any("runs Python code of the model (own.OwnConfig" in note for note in notes)
    assert type(load_base(str(folder), "float32").model).__name__ == "OwnForCausalLM"  # said once
    (folder / "own.py").write_text(OWN_CODE + "\nx = 1\n")
    with pytest.raises(ModelError, match="does not run unless you say so"):
        load_base(str(folder), "float32")


def test_code_in_another_repository_is_never_run(tmp_path: Path) -> None:
    folder = own_model(tmp_path / "own")
    content = json.loads((folder / "config.json").read_text())
    content["auto_map"]["AutoConfig"] = "other/repo--own.OwnConfig"
    (folder / "config.json").write_text(json.dumps(content))
    with pytest.raises(ModelError, match="in another repository"):
        load_base(str(folder), "float32", trust_remote_code=True)
