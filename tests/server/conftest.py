"""A run on the two-layer model, trained once."""

from __future__ import annotations

from pathlib import Path

import pytest

import lamina
from tests.support.training import settings


@pytest.fixture(scope="session")
def trained(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run."""
    folder = tmp_path_factory.mktemp("served")
    train = {"max_steps": 3, "eval_steps": 3, "save_steps": 3}
    return lamina.train(settings(folder, model_folder, "support", train=train)).path
