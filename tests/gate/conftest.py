"""Two adapters of one base, trained once, for the gate."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.evaluation import Pair, build_pair


@pytest.fixture(scope="session")
def pair(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """A strong and a weak adapter, and a task. Do not change them."""
    return build_pair(tmp_path_factory.mktemp("pair"), model_folder)
