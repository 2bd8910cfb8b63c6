"""Two servers, and adapters for them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lamina.server.vllm.engine import VllmEngine
from lamina.server.vllm.open import open_vllm_engine
from tests.support.vllm import FakeVllm, write_adapter


@pytest.fixture(scope="session")
def written(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two adapters that answer differently."""
    folder = tmp_path_factory.mktemp("adapters")
    return {name: write_adapter(folder / name, model_folder, seed) for name, seed in (("one", 5), ("two", 6))}


@pytest.fixture
def fakes(model_folder: Path) -> Iterator[list[FakeVllm]]:
    """Two servers."""
    made = [FakeVllm(model_folder), FakeVllm(model_folder)]
    yield made
    for fake in made:
        fake.hangs = False
        fake.kill()


@pytest.fixture
def opened(model_folder: Path, fakes: list[FakeVllm]) -> Iterator[Callable[..., VllmEngine]]:
    """Opens engines on the servers, and closes them."""
    engines: list[VllmEngine] = []

    def build(adapters: dict[str, Path] | None = None, count: int = 2, **settings: Any) -> VllmEngine:
        urls = [fake.url for fake in fakes[:count]]
        settings = {"dtype": "float32", "check_seconds": 0.1, **settings}
        engines.append(open_vllm_engine(str(model_folder), adapters, urls=urls, **settings))
        return engines[-1]

    yield build
    for engine in engines:
        engine.close()
