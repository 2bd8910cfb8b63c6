"""Servers that do not apply an adapter are found out before they get traffic."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import cast
from unittest.mock import Mock

import pytest
import torch

from lamina.adapters.certificate import Certificate
from lamina.adapters.probes import LayerRecord, Probe
from lamina.errors import AdapterError, CertificateError
from lamina.server.vllm.certify import Sealed, certify
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


class Rounded:
    """A server of a made-up model: an adapter's layers add up, and every number comes with an error of its own."""

    url = "http://rounded"

    def __init__(self, seed: int, effects: Sequence[float], missing: Sequence[int] = ()) -> None:
        self._draw = torch.Generator().manual_seed(seed)
        self._base = [24.0 - 3.0 * torch.arange(8.0) + 0.3 * self._normal() for _ in range(4)]
        parts = [[effect * self._normal() for effect in effects] for _ in range(4)]
        whole = [base + sum(part) for base, part in zip(self._base, parts, strict=True)]
        self._seen = [each - sum(part[layer] for layer in missing) for each, part in zip(whole, parts, strict=True)]
        self.probes = [
            Probe(
                prompt="",
                input_ids=[number, *range(11)],
                positions=list(range(12)),
                token_ids=[list(range(8))] * 12,
                adapter_logits=self._recorded(whole[number]),
                base_logits=self._recorded(self._base[number]),
                layers=LayerRecord(
                    positions=list(range(12)),
                    token_ids=[list(range(8))] * 12,
                    whole=self._recorded(whole[number]),
                    without={
                        f"layers.{n}": self._recorded(whole[number] - part) for n, part in enumerate(parts[number])
                    },
                ),
            )
            for number in range(4)
        ]

    def logprobs(self, model: str, ids: Sequence[int]) -> list[dict[int, float]]:
        logits = (self._base if model == "base" else self._seen)[ids[0]]
        return [dict(enumerate(row)) for row in self._recorded(logits)]

    def certify(self) -> Certificate:
        lock = Mock(base_dtype="bfloat16")
        sealed = Sealed(Path("a"), Path("a"), "", "lora", lock, self.probes, True, 0)
        found = certify(cast(VllmClient, self), "a", "base", sealed, "bfloat16")
        assert found is not None
        return found

    def _normal(self) -> torch.Tensor:
        return torch.randn(12, 8, generator=self._draw)

    def _recorded(self, logits: torch.Tensor) -> list[list[float]]:
        return (logits + 0.05 * self._normal()).tolist()


@pytest.mark.parametrize("seed", range(10))
def test_a_layer_that_rounding_nearly_hides_is_missed(seed: int) -> None:
    """Each layer changes the numbers about as much as rounding does; the last one changes nothing."""
    effects = [0.1] * 8 + [0.0]
    whole = Rounded(seed, effects).certify()
    assert whole.passed and "1 of the adapter's layers" in whole.notes[-1]
    for missing in (seed % 8, (seed + 3) % 8):
        found = Rounded(seed, effects, [missing]).certify()
        assert found.reasons == [f"its numbers are nearer to those without the adapter's part of layers.{missing}"]
    both = Rounded(seed, effects, [2, 5]).certify()
    assert not both.passed and ("layers.2, layers.5" in both.line() or "from its record" in both.line())


def test_layers_that_change_nothing_are_not_taken_for_missing() -> None:
    found = [Rounded(seed, [0.0] * 7 + [0.3]).certify() for seed in range(200)]
    assert sum(not each.passed for each in found) <= 2
    assert "7 of the adapter's layers" in found[0].notes[-1]
