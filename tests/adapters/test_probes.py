"""The certificate tells an applied adapter from one that is missing, doubled, or on another base."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from lamina.adapters.certificate import Certificate, replay_on_model
from lamina.adapters.lock import build_lock, check_lock
from lamina.adapters.logits import model_logits
from lamina.adapters.probes import Probe
from lamina.chat.template import build_template
from lamina.config.methods.lora import LoraConfig
from lamina.config.methods.prompt_tuning import PromptTuningConfig
from lamina.engine.probes import record_probes
from lamina.errors import AdapterError, BaseMismatchError, CertificateError, NewerVersionError
from lamina.export.fold import fold_in
from lamina.methods.shared.base import Injection, inject
from lamina.models.load import load_base
from tests.support.models_zoo import build_model, build_tokenizer

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def trained(dtype: str = "float32", scale: float = 0.15) -> Injection:
    injection = inject(build_model("llama", DTYPES[dtype], vocab_size=259), LoraConfig(r=4, lora_alpha=8), seed=0)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, tensor in injection.tensors().items():
            if "lora_B" in name:
                tensor.normal_(0.0, scale, generator=generator)
    return injection


def record(injection: Injection, by_layer: bool = False) -> list[Probe]:
    return record_probes(injection, build_template(build_tokenizer()), by_layer=by_layer)


def replay(injection: Injection, probes: list[Probe], dtype: str = "float32", matched: int = 14) -> Certificate:
    return replay_on_model(
        injection.model,
        probes,
        subject="test",
        adapter_digest="sha256:test",
        modules_expected=14,
        modules_matched=matched,
        trained_dtype=dtype,
    )


@pytest.mark.parametrize("dtype", DTYPES)
def test_passes_on_the_model_itself_and_after_merging(dtype: str) -> None:
    injection = trained(dtype)
    probes = record(injection)
    itself = replay(injection, probes, dtype)
    assert itself.passed
    assert itself.max_logit_difference == 0.0
    assert itself.effect_kept == pytest.approx(1.0)
    fold_in(injection)
    merged = replay(injection, probes, dtype)
    assert merged.passed, merged.line()
    assert merged.require() is merged


@pytest.mark.parametrize("dtype", DTYPES)
def test_fails_without_the_adapter(dtype: str) -> None:
    injection = trained(dtype)
    probes = record(injection)
    with injection.disabled():
        certificate = replay(injection, probes, dtype)
    assert not certificate.passed
    assert certificate.effect_kept == pytest.approx(0.0, abs=1e-6)
    with pytest.raises(CertificateError, match="0% of the adapter's recorded effect"):
        certificate.require()


def test_fails_when_the_adapter_is_applied_twice() -> None:
    injection = trained()
    probes = record(injection)
    for layer in injection.layers.values():
        layer.scaling *= 2.0
    assert not replay(injection, probes).passed


def test_fails_when_one_module_is_left_out() -> None:
    injection = trained()
    probes = record(injection)
    injection.layers["model.layers.1.mlp.down_proj"].enabled = False
    assert not replay(injection, probes).passed
    injection.layers["model.layers.1.mlp.down_proj"].enabled = True
    assert replay(injection, probes).passed
    assert not replay(injection, probes, matched=13).passed


def test_fails_for_an_adapter_that_never_did_anything() -> None:
    injection = trained(scale=0.0)
    certificate = replay(injection, record(injection))
    assert not certificate.passed
    assert "did not change the logits" in certificate.reasons[0]


def test_fails_on_another_base() -> None:
    injection = trained()
    probes = record(injection)
    with torch.no_grad():
        injection.model.get_submodule("model.layers.0.mlp.up_proj").weight.mul_(1.1)
    assert not replay(injection, probes).passed


def test_fails_on_logits_that_are_not_finite() -> None:
    injection = trained()
    probes = record(injection)
    with torch.no_grad():
        injection.layers["model.layers.0.mlp.up_proj"].lora_A.fill_(float("nan"))
    certificate = replay(injection, probes)
    assert not certificate.passed
    assert "the logits are not finite" in certificate.reasons


def test_probes_survive_json() -> None:
    probes = record(trained())
    assert [Probe.from_json(probe.as_json()) for probe in probes] == probes


def test_what_each_layer_adds_is_recorded() -> None:
    """As the adapter gives it with that layer's modules disabled."""
    injection = trained()
    injection.model.eval()
    probes, logits = record(injection, by_layer=True), model_logits(injection.model)

    def check(recorded: list[list[float]], probe: Probe) -> None:
        assert probe.layers is not None
        given = logits(probe.input_ids, probe.layers.positions).gather(1, torch.tensor(probe.layers.token_ids))
        torch.testing.assert_close(torch.tensor(recorded), given, rtol=1e-3, atol=1e-4)  # to four digits

    for probe in probes:
        assert probe.layers is not None and set(probe.layers.without) == {"model.layers.0", "model.layers.1"}
        assert len(probe.layers.positions) == min(len(each.input_ids) for each in probes)
        check(probe.layers.whole, probe)
    for layer in ("model.layers.0", "model.layers.1"):
        modules = [each for name, each in injection.layers.items() if name.startswith(f"{layer}.")]
        assert len(modules) == 7
        for module in modules:
            module.enabled = False
        for probe in probes:
            assert probe.layers is not None
            check(probe.layers.without[layer], probe)
        for module in modules:
            module.enabled = True
    again = record(injection)
    assert [probe.adapter_logits for probe in again] == [probe.adapter_logits for probe in probes]


def test_an_adapter_without_layers_records_none() -> None:
    injection = inject(build_model("llama", vocab_size=259), PromptTuningConfig(num_virtual_tokens=3), seed=0)
    assert all(probe.layers is None for probe in record(injection, by_layer=True))


def test_lock_names_both_digests_of_whatever_differs(tmp_path: Path) -> None:
    for name, eps in (("one", 1e-6), ("two", 1e-4)):
        model = build_model("llama", vocab_size=259, rms_norm_eps=eps)
        model.model.norm.weight.data.mul_(1.0 + eps)
        model.save_pretrained(tmp_path / name)
        build_tokenizer().save_pretrained(tmp_path / name)
    one, two = (load_base(str(tmp_path / name), "float32") for name in ("one", "two"))
    template = build_template(one.tokenizer)
    lock = build_lock(one, template, [])
    assert check_lock(lock, one, template) == []
    with pytest.raises(BaseMismatchError) as caught:
        check_lock(lock, two, template)
    for digest in (one.fingerprint, two.fingerprint):
        assert digest.tensors in str(caught.value)
        assert digest.config in str(caught.value)
    notes = check_lock(lock, two, template, allow_mismatch=True)
    assert len(notes) == 2
    other = dataclasses.replace(lock, tokenizer="sha256:other", chat_template_digest="sha256:another")
    assert len(check_lock(other, one, template, allow_mismatch=True)) == 2


@pytest.mark.parametrize(
    "damage", [{"positions": []}, {"whole": [[1.0]]}, {"token_ids": 3}, {"without": {"a": []}}], ids=str
)
def test_a_damaged_record_of_layers_is_one_error(damage: dict[str, Any]) -> None:
    value = record(trained(), by_layer=True)[0].as_json()
    assert Probe.from_json(value).layers is not None
    with pytest.raises(AdapterError, match="a probe is not readable"):
        Probe.from_json({**value, "layers": {**value["layers"], **damage}})
    with pytest.raises(NewerVersionError, match=r"layers\.more"):
        Probe.from_json({**value, "layers": {**value["layers"], "more": 1}})
