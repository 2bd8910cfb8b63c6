"""From a base and adapters to an engine with servers: what is started, what is refused before, what is left behind."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from lamina.adapters.adapter import read_adapter
from lamina.errors import AdapterError, BaseMismatchError, CertificateError, ConfigError, LaminaError, StorageError
from lamina.server.vllm import open as opening
from lamina.server.vllm.base import read_base
from lamina.server.vllm.engine import VllmEngine
from lamina.server.vllm.open import open_vllm_engine
from lamina.server.vllm.process import ProcessSettings
from lamina.server.vllm.staging import Staging
from tests.support.models_zoo import build_model, build_tokenizer
from tests.support.vllm import FakeVllm

Open = Callable[..., VllmEngine]


@dataclass
class Started:
    """A server that runs in this process in the place of one that was started."""

    fake: FakeVllm
    key: str = ""
    stops: list[bool] = field(default_factory=list)

    @property
    def url(self) -> str:
        return self.fake.url

    def stop(self) -> None:
        self.stops.append(True)


@pytest.fixture
def starts(fakes: list[FakeVllm], monkeypatch: pytest.MonkeyPatch) -> list[tuple[ProcessSettings, list[Started]]]:
    """What was started, and how."""
    seen: list[tuple[ProcessSettings, list[Started]]] = []

    def start(count: int, settings: ProcessSettings, python: str | None) -> list[Started]:
        seen.append((settings, [Started(fake) for fake in fakes[:count]]))
        return seen[-1][1]

    monkeypatch.setattr(opening, "start_all", start)
    return seen


def test_servers_are_started_for_the_adapters_and_ended(
    starts: list[tuple[ProcessSettings, list[Started]]], written: dict[str, Path], model_folder: Path
) -> None:
    said: list[str] = []
    with open_vllm_engine(str(model_folder), written, replicas=2, dtype="float32", notify=said.append) as engine:
        assert engine.adapters == ["one", "two"]
    ((settings, started),) = starts
    assert (settings.folder, settings.dtype, settings.most_rank) == (model_folder, "float32", 16)
    assert [each.stops for each in started] == [[True], [True]]
    assert said[0] == "Starting vLLM (2 servers) ..." and "Loading the adapter one ..." in said
    with open_vllm_engine(str(model_folder), replicas=1, arguments=["--max-lora-rank=64"], dtype="float32"):
        assert starts[1][0].most_rank == 64
    with open_vllm_engine(str(model_folder), arguments=["--max-lora-rank", "8"]) as engine:
        assert starts[2][0].most_rank == 8 and starts[2][0].dtype in ("bfloat16", "float32")


def test_what_fails_leaves_no_server(
    starts: list[tuple[ProcessSettings, list[Started]]],
    written: dict[str, Path],
    model_folder: Path,
    fakes: list[FakeVllm],
) -> None:
    fakes[0].ignores = True
    with pytest.raises(CertificateError):
        open_vllm_engine(str(model_folder), written, dtype="float32")
    fakes[1].kill()
    with pytest.raises(LaminaError, match="does not answer"):
        open_vllm_engine(str(model_folder), replicas=2, dtype="float32")
    assert all(each.stops for _, started in starts for each in started)


def test_settings_that_cannot_be(model_folder: Path, written: dict[str, Path]) -> None:
    def fails(part: str, **settings: Any) -> None:
        with pytest.raises(ConfigError, match=part):
            open_vllm_engine(str(model_folder), written, **settings)

    fails("--replicas: 0 is not 1 or more", replicas=0)
    fails("copies: 0 is not", copies=0)
    fails("names a server twice", urls=["http://a", "http://a"])
    fails("so none is started", urls=["http://a"], replicas=2)
    fails("so none is started", urls=["http://a"], arguments=["--x"])
    fails("dtype: 'int8' is not one of bfloat16, float16, float32", dtype="int8", urls=["http://a"])


def test_locks_are_checked(opened: Open, written: dict[str, Path], tmp_path: Path, fakes: list[FakeVllm]) -> None:
    other = tmp_path / "other"
    model = build_model("llama", vocab_size=len(build_tokenizer()))
    next(model.parameters()).data.add_(0.01)
    model.save_pretrained(other)
    build_tokenizer().save_pretrained(other)
    with pytest.raises(BaseMismatchError, match="locked to another base"):
        open_vllm_engine(str(other), written, urls=[fakes[0].url], dtype="float32")
    allowed = {"urls": [fakes[0].url], "dtype": "float32", "allow_base_mismatch": True}
    with open_vllm_engine(str(other), written, **allowed) as engine:
        assert "weights differ" in engine.loaded()[0].notes[0]
    with pytest.raises(AdapterError):
        opened({"a": tmp_path / "nowhere"})


def test_the_outline_is_the_base_without_its_weights(model_folder: Path) -> None:
    base = read_base(str(model_folder), "bfloat16")
    assert all(tensor.is_meta for tensor in base.model.parameters())
    assert base.fingerprint.tensors.startswith("sha256:") and base.model.generation_config is not None


def test_copies_are_what_was_checked(written: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    adapter = read_adapter(written["one"])
    staging = Staging(tmp_path)
    first, second = staging.copy(adapter), staging.copy(adapter)
    assert first != second and read_adapter(first).digest == adapter.digest
    staging.drop(first)
    assert not first.exists() and second.exists()
    monkeypatch.setattr("lamina.server.vllm.staging.read_adapter", lambda folder: read_adapter(written["two"]))
    with pytest.raises(AdapterError, match="changed while it was copied"):
        staging.copy(adapter)
    staging.close()
    with pytest.raises(StorageError, match="copying the adapter failed"):
        staging.copy(adapter)
    with pytest.raises(StorageError, match="making a folder for adapters failed"):
        Staging(tmp_path / "nowhere")
    assert list(tmp_path.iterdir()) == []
