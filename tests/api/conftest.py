"""What the tests of the Python API share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.support.training import WORDS


@pytest.fixture
def rows() -> list[dict[str, Any]]:
    """Prompts that name two words, answers that swap them."""
    pairs = [(WORDS[i % 12], WORDS[(5 * i + 1) % 12]) for i in range(24)]
    return [{"prompt": f"{one} {two} {i}", "completion": f"{two}!"} for i, (one, two) in enumerate(pairs)]


@pytest.fixture
def short(model_folder: Path, tmp_path: Path) -> dict[str, Any]:
    """Settings of a run that takes a moment."""
    return {
        "model": model_folder,
        "max_steps": 3,
        "max_length": 128,
        "learning_rate": 5e-3,
        "dtype": "float32",
        "output_dir": tmp_path / "run",
        "progress": False,
    }
