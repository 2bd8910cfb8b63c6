"""Servers that do not apply an adapter are found out before they get traffic."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest

from lamina.errors import AdapterError, CertificateError
from lamina.server.vllm.client import VllmClient
from tests.support.vllm import FakeVllm, _Handler, write_adapter
from tests.support.vllm_clients import Open, ask


@pytest.mark.parametrize("fault", ["ignores", "scaled", "zeroed"])
def test_a_server_that_does_not_apply_an_adapter_gets_no_traffic(
    opened: Open, written: dict[str, Path], fakes: list[FakeVllm], fault: str
) -> None:
    engine = opened()
    setattr(fakes[1], fault, True)
    with pytest.raises(CertificateError, match=r"on vLLM at http.*certificate FAILED.*Fix: ") as caught:
        engine.load("a", written["one"])
    assert not caught.value.certificate.passed and engine.adapters == []
    assert not any(fake.adapters or fake.asked for fake in fakes)
    setattr(fakes[1], fault, False)
    facts = engine.load("a", written["one"])
    assert facts.certificate is not None and facts.certificate.passed and facts.certificate.dtype == "float32"


def test_a_stale_reload_is_found_out_and_the_old_one_stays(
    opened: Open, written: dict[str, Path], fakes: list[FakeVllm]
) -> None:
    engine = opened({"a": written["one"]})
    for fake in fakes:
        fake.stale = True
    with pytest.raises(CertificateError, match="FAILED"):
        engine.load("a", written["two"])
    (kept,) = engine.loaded()
    assert kept.path == written["one"] and engine.generate([ask("a")])[0].digest == kept.digest
    assert [len(fake.adapters) for fake in fakes] == [1, 1]


def test_what_bfloat16_would_hide_is_seen_beside_the_base(
    opened: Open, written: dict[str, Path], fakes: list[FakeVllm], model_folder: Path, tmp_path: Path
) -> None:
    """A weak adapter in the place of another: the wide tolerance of bfloat16 has room for both."""
    weak = write_adapter(tmp_path / "weak", model_folder, 7, lora_alpha=0.4)
    engine = opened({"weak": weak}, dtype="bfloat16")
    fakes[0].zeroed = fakes[1].zeroed = True
    with pytest.raises(CertificateError, match="from its record") as caught:
        engine.load("weak", weak)
    assert caught.value.certificate.max_logit_difference < caught.value.certificate.tolerance


def test_another_base_behind_the_url_is_named(opened: Open, written: dict[str, Path], fakes: list[FakeVllm]) -> None:
    engine = opened()
    for fake in fakes:
        fake.model = copy.deepcopy(fake.model)
        next(fake.model.parameters()).data.mul_(1.3)
    with pytest.raises(CertificateError, match="bare base itself differs"):
        engine.load("a", written["one"])


def test_an_adapter_without_probes_must_change_something(
    opened: Open, written: dict[str, Path], fakes: list[FakeVllm], tmp_path: Path
) -> None:
    folder = tmp_path / "plain"
    folder.mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (folder / name).write_bytes((written["one"] / name).read_bytes())
    engine = opened()
    facts = engine.load("a", folder)
    assert facts.certificate is None and "no lamina.json" in facts.notes[0]
    fakes[0].ignores = fakes[1].ignores = True
    with pytest.raises(AdapterError, match=r"gives the bare base's numbers.*Fix: "):
        engine.load("b", folder)
    assert engine.adapters == ["a"]


@pytest.mark.parametrize(
    ("refusal", "hint"),
    [
        ((500, "LoRA rank 32 is greater than max_lora_rank 16."), "higher --max-lora-rank"),
        ((404, "Not Found"), "VLLM_ALLOW_RUNTIME_LORA_UPDATING=1"),
        ((400, "no such module"), "--engine lamina"),
    ],
)
def test_what_a_server_does_not_take_is_said_with_a_way_out(
    opened: Open, written: dict[str, Path], fakes: list[FakeVllm], refusal: tuple[int, str], hint: str
) -> None:
    engine = opened()
    fakes[0].refuses = fakes[1].refuses = refusal
    with pytest.raises(AdapterError, match="does not take it") as caught:
        engine.load("a", written["one"])
    assert hint in str(caught.value) and str(written["one"]) in str(caught.value)


def test_a_server_without_log_probabilities_cannot_be_certified(
    opened: Open, written: dict[str, Path], fakes: list[FakeVllm], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = opened()
    monkeypatch.setattr(_Handler, "_of_prompt", lambda self, body: None)
    with pytest.raises(AdapterError, match="does not take it: its log-probabilities are not as vLLM gives them"):
        engine.load("a", written["one"])
    assert not any(fake.adapters for fake in fakes)


def test_a_server_that_gives_other_tokens_alone_cannot_be_certified(
    opened: Open, written: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = opened()
    monkeypatch.setattr(VllmClient, "logprobs", lambda self, model, ids: [{-1: -1.0, -2: -2.0}] * len(ids))
    with pytest.raises(CertificateError, match="too few of the bare base's log-probabilities"):
        engine.load("a", written["one"])
