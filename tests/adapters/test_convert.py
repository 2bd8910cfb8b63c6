"""Pickled adapters are written again as safetensors; what is more than tensors is refused, and never run."""

from __future__ import annotations

import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file

import lamina
from lamina.adapters import convert as conversion
from lamina.adapters.convert import convert
from lamina.adapters.unpickle import read_pickle
from lamina.errors import AdapterError
from tests.support.peft_pairs import base_folder, build, check_close, logits, peft_logits, train_with_peft


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter as peft wrote it before safetensors."""
    path = tmp_path_factory.mktemp("old") / "adapter"
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj", "down_proj"])
    train_with_peft(build("llama"), config, path)
    torch.save(load_file(path / "adapter_model.safetensors"), path / "adapter_model.bin")
    (path / "adapter_model.safetensors").unlink()
    (path / "tokenizer_config.json").write_text("{}")
    (path / "optimizer.pt").write_bytes(b"0")
    return path


def copy_with(theirs: Path, folder: Path, content: Any) -> Path:
    """The adapter with another pickle."""
    folder.mkdir()
    (folder / "adapter_config.json").write_bytes((theirs / "adapter_config.json").read_bytes())
    if isinstance(content, bytes):
        (folder / "adapter_model.bin").write_bytes(content)
    else:
        torch.save(content, folder / "adapter_model.bin")
    return folder


def test_an_old_adapter_gives_pefts_logits(theirs: Path, tmp_path: Path) -> None:
    expected = peft_logits(build("llama"), theirs)
    with pytest.raises(AdapterError, match=r"lamina convert \S+ --out NEW"):
        lamina.load(theirs, model=str(base_folder("llama", tmp_path)))
    converted = convert(theirs, tmp_path / "new")
    assert converted.tensors == 8 and converted.bytes == (tmp_path / "new/adapter_model.safetensors").stat().st_size
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == [
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "tokenizer_config.json",
    ]
    loaded = lamina.load(tmp_path / "new", model=str(base_folder("llama", tmp_path)), dtype="float32")
    check_close(logits(loaded.model), expected)
    assert (theirs / "adapter_model.bin").is_file()


def test_dtypes_views_and_the_old_container_are_kept(tmp_path: Path) -> None:
    whole = torch.randn(6, 4)
    tensors = {"a": whole[::2].T, "b": whole, "c": torch.randn(3).half(), "d": torch.arange(3)}
    torch.save(tensors, tmp_path / "old.bin", _use_new_zipfile_serialization=False)
    found = read_pickle(tmp_path / "old.bin")
    assert not isinstance(found, str)
    assert all(tensor.is_contiguous() for tensor in found.values())
    assert all(
        torch.equal(found[name], tensor) and found[name].dtype == tensor.dtype for name, tensor in tensors.items()
    )


class Runs:
    """Asks the unpickler to run a command."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.mark}",)


def test_code_in_a_pickle_is_refused_and_not_run(theirs: Path, tmp_path: Path) -> None:
    folder = copy_with(theirs, tmp_path / "old", {"a": Runs(tmp_path / "ran")})
    with pytest.raises(AdapterError, match=r"was not converted: it asks for \S*system, which is no tensor"):
        convert(folder, tmp_path / "new")
    (folder / "adapter_model.bin").write_bytes(pickle.dumps({"a": Runs(tmp_path / "ran")}))
    assert str(read_pickle(folder / "adapter_model.bin")).startswith("it is no file of tensors")
    assert not (tmp_path / "ran").exists()
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ({"a": 3}, "under 'a', it holds a int"),
        ({"state_dict": {"a": torch.zeros(1)}}, "under 'state_dict', it holds a dict"),
        ([torch.zeros(1)], "it holds a list"),
        ({}, "it holds a dict"),
        ({"a": torch.eye(3).to_sparse()}, "'a' is no plain tensor"),
        (b"not a pickle at all", "no file of tensors that torch wrote"),
        (b"", "no file of tensors that torch wrote"),
    ],
)
def test_anything_but_tensors_is_refused(content: Any, reason: str, theirs: Path, tmp_path: Path) -> None:
    folder = copy_with(theirs, tmp_path / "old", content)
    said = read_pickle(folder / "adapter_model.bin")
    assert isinstance(said, str) and reason in said


def test_a_small_file_that_grows_is_stopped(theirs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A container whose parts are compressed, as torch does not write it."""
    folder = copy_with(theirs, tmp_path / "old", {"a": torch.zeros(2**25)})
    monkeypatch.setattr(conversion, "_OVERHEAD", 2**24)
    large, small = folder / "adapter_model.bin", folder / "small.bin"
    with zipfile.ZipFile(large) as read, zipfile.ZipFile(small, "w", zipfile.ZIP_DEFLATED) as written:
        for name in read.namelist():
            written.writestr(name, read.read(name))
    small.replace(large)
    assert large.stat().st_size < 2**20
    with pytest.raises(AdapterError, match="more memory than the file's size allows"):
        convert(folder, tmp_path / "new")


def test_bounds_of_size_and_time(theirs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conversion, "MAX_BYTES", 100)
    with pytest.raises(AdapterError, match="at most 100 are read"):
        convert(theirs, tmp_path / "new")
    monkeypatch.undo()
    monkeypatch.setattr(conversion, "SECONDS", 0.05)
    with pytest.raises(AdapterError, match=r"took more than 0\.1 seconds"):
        convert(theirs, tmp_path / "new")


def test_what_cannot_be_converted_is_said(theirs: Path, tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match="there is no such folder"):
        convert(tmp_path / "nowhere", tmp_path / "new")
    with pytest.raises(AdapterError, match="already exists"):
        convert(theirs, tmp_path)
    new = tmp_path / "new"
    new.mkdir()
    (new / "adapter_config.json").write_bytes((theirs / "adapter_config.json").read_bytes())
    (new / "adapter_model.safetensors").touch()
    with pytest.raises(AdapterError, match=r"has no adapter_model\.bin; it has adapter_model\.safetensors"):
        convert(new, tmp_path / "newer")
