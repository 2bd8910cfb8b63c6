"""Shared fixtures: two-layer random models of each family, and a small tokenizer, all made in memory."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

os.environ["HF_HUB_OFFLINE"] = "1"
# Tables are as wide as this, whatever the terminal; the worker processes of pytest-xdist would say 80.
os.environ["COLUMNS"] = "200"
# Two-layer models are faster on one thread, whatever else the machine does.
torch.set_num_threads(1)
# A shell leaves both ignored in what it starts in the background or with nohup, and processes of ours inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
if hasattr(signal, "SIGHUP"):
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tests.support.models_zoo import FAMILIES, build_model, build_tokenizer

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(autouse=True, scope="session")
def _cache_folder(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Digests of throw-away models stay out of the user's cache; converted models and compiled kernels are shared."""
    if "LAMINA_CACHE" not in os.environ:
        from lamina.cache.folder import cache_folder

        folder = tmp_path_factory.mktemp("cache")
        for shared in ("models", "kernels"):
            (cache_folder() / shared).mkdir(parents=True, exist_ok=True)
            (folder / shared).symlink_to(cache_folder() / shared)
        os.environ["LAMINA_CACHE"] = str(folder)


@pytest.fixture(params=["apart", "shared"])
def members(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Linears with the same input multiply each by itself, as the small models' would, or share a product."""
    from lamina.compute.ops import linear_group

    monkeypatch.setattr(linear_group, "_MOST_ZEROS", 0.0 if request.param == "apart" else 100.0)
    return request.param


@pytest.fixture(params=sorted(FAMILIES))
def family(request: pytest.FixtureRequest) -> str:
    """Each model family in turn."""
    return request.param


@pytest.fixture
def tiny() -> Callable[[str], PreTrainedModel]:
    """Builds a two-layer random model of a family."""
    return build_model


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerBase:
    """A byte-level tokenizer with ChatML's special tokens and template."""
    return build_tokenizer()


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A two-layer Llama with its tokenizer, on disk."""
    folder = tmp_path_factory.mktemp("tiny-llama")
    build_model("llama", vocab_size=len(build_tokenizer())).save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real data files; tests that need them skip where they are absent."""
    if not SHARED_DATA.is_dir():
        pytest.skip("the shared data files are not here")
    return SHARED_DATA


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
