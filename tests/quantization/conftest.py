"""What the tests of quantized bases share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.models_zoo import build_model, build_tokenizer


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model folder, and a cache of its own."""
    monkeypatch.setenv("LAMINA_CACHE", str(tmp_path / "cache"))
    build_model("llama", vocab_size=259).save_pretrained(tmp_path / "base")
    build_tokenizer().save_pretrained(tmp_path / "base")
    return tmp_path / "base"
