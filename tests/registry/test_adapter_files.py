"""The digest of an adapter without torch is the one that torch gives, in every dtype."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from lamina.adapters.adapter import adapter_digest
from lamina.errors import AdapterError, NewerVersionError
from lamina.registry.adapter_files import content_digest, read_adapter_files
from tests.support.registry import make_adapter

DTYPES = (
    torch.float32,
    torch.float64,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint8,
    torch.bool,
)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(0,), (), (3,), (5, 7), (2, 3, 5), (600_011,)])
def test_the_digest_is_the_one_that_torch_gives(tmp_path: Path, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    tensors = {
        "b.weight": (torch.randn(shape) * 50).to(dtype),
        "a.weight": torch.full((2, 2), -0.0),
        "ü": torch.tensor([float("inf"), float("nan"), 1e-45]),
    }
    settings = {"type": "lora", "r": 4, "alpha": 0.1, "names": ["ü"]}
    save_file(tensors, tmp_path / "x.safetensors", metadata={"format": "pt"})
    assert content_digest(settings, tmp_path / "x.safetensors") == adapter_digest(settings, tensors)


def test_a_newer_format_is_told(tmp_path: Path) -> None:
    path = make_adapter(tmp_path / "a") / "lamina.json"
    path.write_text(path.read_text().replace('"format": 1', '"format": 2'))
    with pytest.raises(NewerVersionError):
        read_adapter_files(tmp_path / "a")


@pytest.mark.parametrize("file", ["adapter_config.json", "lamina.json", "adapter_model.safetensors"])
@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff" * 100, b"{}", b"\xff" * 7, bytes(8)])
def test_files_that_are_none(tmp_path: Path, file: str, content: bytes) -> None:
    folder = make_adapter(tmp_path / "a")
    (folder / file).write_bytes(content)
    if (file, content) == ("adapter_config.json", b"{}"):
        assert read_adapter_files(folder).base_ref == ""
        return
    with pytest.raises(AdapterError):
        read_adapter_files(folder)
