"""A minute of what `make soak` does for half an hour."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("fastapi")

from tools.soak import soak


def test_nothing_goes_wrong_under_everything_that_clients_may_do(tmp_path: Path) -> None:
    outcome = soak(seconds=20.0, clients=8, folder=tmp_path, names=("amber", "birch", "cedar", "elm"))
    # Memory is compared over half an hour; a minute's is still filling its caches.
    assert [fault for fault in outcome.faults() if "memory" not in fault] == []
