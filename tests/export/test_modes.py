"""Who may read what lamina writes: whoever the umask says, such as a server that runs under another user."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

import lamina
from lamina.cache.folder import cache_folder
from lamina.models.shards import ShardWriter
from lamina.models.source import find_model
from tests.support.models_zoo import build_model, build_tokenizer
from tests.support.training import settings


@pytest.fixture(params=[0o022, 0o027])
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache that this test alone writes to, but for kernels, which are not compiled once more."""
    kernels = cache_folder() / "kernels"
    folder = tmp_path / "cache"
    folder.mkdir()
    (folder / "kernels").symlink_to(kernels)
    monkeypatch.setenv("LAMINA_CACHE", str(folder))
    return folder


def wrong_modes(folder: Path, umask: int) -> dict[str, str]:
    found = {path: stat.S_IMODE(path.lstat().st_mode) for path in [folder, *folder.rglob("*")] if not path.is_symlink()}
    assert len(found) > 1, folder
    wanted = {path: (0o777 if path.is_dir() else 0o666) & ~umask for path in found}
    return {str(path): oct(mode) for path, mode in found.items() if mode != wanted[path]}


def test_runs_and_merged_models(umask: int, cache: Path, model_folder: Path, tmp_path: Path) -> None:
    run = lamina.train(settings(tmp_path, model_folder, train={"max_steps": 3}))
    names = {path.name for path in run.path.rglob("*")}
    assert {"adapter_model.safetensors", "optimizer.safetensors", "state.json", "metrics.jsonl", ".lock"} <= names
    merged = lamina.merge(run.path, tmp_path / "merged")
    for folder in (run.path, merged.path, cache):
        assert wrong_modes(folder, umask) == {}


def test_quantized_bases(umask: int, cache: Path, model_folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    values = settings(tmp_path, model_folder, train={"max_steps": 1}) | {"quantization": {"bits": 4, "blocksize": 32}}
    written = lamina.quantize(values, tmp_path / "quantized")
    run = lamina.train(values)  # which keeps the quantized form of its base in the cache
    assert list(cache.glob("quantized/*/*.safetensors"))
    for folder in (written.path, run.path, cache):
        assert wrong_modes(folder, umask) == {}


def test_converted_models(umask: int, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def convert(gguf: Path, folder: Path) -> None:
        """What the converter does, without the reading."""
        model = build_model("llama", vocab_size=len(build_tokenizer()))
        writer = ShardWriter(folder, max_bytes=50_000)
        for name, tensor in model.state_dict().items():
            writer.add(name, tensor)
        writer.close()
        model.config.save_pretrained(folder)
        build_tokenizer().save_pretrained(folder)

    monkeypatch.setattr("lamina.models.source.convert_gguf", convert)
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    source = find_model(str(tmp_path / "model.gguf"))
    assert len(list(source.folder.glob("*.safetensors"))) > 1
    assert wrong_modes(cache, umask) == {}
