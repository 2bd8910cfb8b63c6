"""A merge's certificate tells an adapter that rounds away from one that is not there, and names a way that works."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import lamina
from lamina.adapters.adapter import save_adapter
from lamina.adapters.certificate import Certificate, replay_on_model
from lamina.adapters.lock import build_lock
from lamina.adapters.probes import Probe
from lamina.chat.template import build_template
from lamina.config import METHOD_CONFIGS
from lamina.engine.probes import record_probes
from lamina.errors import CertificateError
from lamina.export import merge as merging
from lamina.export.fold import fold_in
from lamina.methods.shared.base import Injection, inject
from lamina.models.load import load_base
from tests.support.models_zoo import build_model, build_tokenizer

IDS = torch.tensor([[5, 9, 17, 33, 4, 101, 7, 60, 21]])

METHODS = ["ia3", "adalora", "lora", "dora", "loha", "vera", "ln_tuning"]


def write_base(folder: Path, family: str = "llama", **changes: Any) -> Path:
    build_model(family, vocab_size=259, **changes).save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
    return folder


def save(base: Path, method: dict[str, Any], dtype: str, change: Callable[[Injection], None]) -> Path:
    """An adapter that `change` has trained, on disk beside the base."""
    loaded = load_base(str(base), dtype)
    template = build_template(loaded.tokenizer)
    injection = inject(loaded.model, METHOD_CONFIGS[method["type"]].model_validate(method), seed=0)
    with torch.no_grad():
        change(injection)
    loaded.model.eval()
    path = base.parent / "adapter"
    save_adapter(path, injection, loaded, build_lock(loaded, template, []), record_probes(injection, template))
    return path


def lightly(injection: Injection) -> None:
    generator = torch.Generator().manual_seed(3)
    for tensor in injection.tensors().values():
        tensor.add_(torch.randn(tensor.shape, generator=generator) * 1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_a_light_adapter_in_bfloat16_has_a_way_out(method: str, tmp_path: Path) -> None:
    adapter = save(write_base(tmp_path / "base"), {"type": method}, "bfloat16", lightly)
    with pytest.raises(CertificateError, match=r"only \d+% of the adapter's weight update is left") as caught:
        lamina.merge(adapter, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()
    assert "--dtype float32" in str(caught.value)
    first = caught.value.certificate
    assert first.update_kept < 0.5
    # Both ways that the error names.
    second = lamina.merge(adapter, tmp_path / "float32", dtype="float32").certificate
    assert second.passed
    assert second.update_kept == pytest.approx(1.0, abs=1e-3)
    assert second.effect_kept == pytest.approx(1.0, abs=0.4)
    third = lamina.merge(adapter, tmp_path / "rounded", allow_difference=True).certificate
    assert not third.passed
    assert third.update_kept == first.update_kept


@pytest.mark.parametrize("method", METHODS)
def test_a_light_adapter_in_float32_merges(method: str, tmp_path: Path) -> None:
    adapter = save(write_base(tmp_path / "base"), {"type": method}, "float32", lightly)
    certificate = lamina.merge(adapter, tmp_path / "merged").certificate
    assert certificate.passed
    assert certificate.update_kept == pytest.approx(1.0, abs=1e-3)


def test_an_adapter_that_is_as_it_was_before_training_is_refused(tmp_path: Path) -> None:
    adapter = save(write_base(tmp_path / "base"), {"type": "lora"}, "float32", lambda injection: None)
    with pytest.raises(
        CertificateError, match=r"did not change the logits when they were recorded.*--allow-difference"
    ):
        lamina.merge(adapter, tmp_path / "merged")
    merged = lamina.merge(adapter, tmp_path / "merged", allow_difference=True)
    assert merged.certificate.update_kept is None


def row_of(token: str) -> int:
    return int(build_tokenizer().convert_tokens_to_ids(token))  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("tokens", ["Z", "ZQ~", "aZ"])
def test_trained_rows_that_no_prompt_has(tokens: str, tied: bool, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    rows = [row_of(token) for token in tokens]
    base = write_base(tmp_path / "base", tie_word_embeddings=tied)
    method = {"type": "peft", "peft_type": "TRAINABLE_TOKENS", "token_indices": rows}

    def train(injection: Injection) -> None:
        for tensor in injection.tensors().values():
            tensor.add_(0.05)

    adapter = save(base, method, "float32", train)
    probes = lamina.load(adapter).adapter.probes
    assert len(probes) == 5
    assert set(rows) - {token for probe in probes[:4] for token in probe.input_ids} <= set(probes[4].input_ids)
    assert lamina.load(adapter).certify().passed
    merged = lamina.merge(adapter, tmp_path / "merged")
    assert merged.certificate.passed
    assert merged.certificate.effect > 0
    ids = torch.tensor([[5, *rows, 9, 17]])
    with torch.no_grad():
        expected = lamina.load(adapter).model(input_ids=ids).logits
        found = AutoModelForCausalLM.from_pretrained(merged.path, dtype=torch.float32)(input_ids=ids).logits
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    # One that is tied stays one: the file holds it once.
    assert ("lm_head.weight" in load_file(merged.path / "model.safetensors")) is not tied


def test_trained_rows_that_are_not_there_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("peft")
    base = write_base(tmp_path / "base", tie_word_embeddings=False)
    method = {"type": "peft", "peft_type": "TRAINABLE_TOKENS", "token_indices": [row_of("Z")]}
    adapter = save(base, method, "float32", lambda injection: [t.add_(0.05) for t in injection.tensors().values()])
    tamper(monkeypatch, lambda tensors: tensors.update(load_file(base / "model.safetensors")))
    with pytest.raises(CertificateError, match=r"1 weights are not as they were written \(first: model.embed_tokens"):
        lamina.merge(adapter, tmp_path / "merged")


def test_rows_of_the_head_that_are_no_likely_answer(tmp_path: Path) -> None:
    """The highest logits do not move, so those that do are recorded."""
    base = write_base(tmp_path / "base", tie_word_embeddings=False)
    method = {"type": "lora", "target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}
    row = row_of("~")

    def train(injection: Injection) -> None:
        injection.layers["lm_head"].adapter_tensors()["weight"][row].mul_(0.5)

    adapter = save(base, method, "float32", train)
    probes = lamina.load(adapter).adapter.probes
    assert any(row in ids for probe in probes for ids in probe.token_ids)
    certificate = lamina.merge(adapter, tmp_path / "merged").certificate
    assert certificate.passed
    assert certificate.effect > 0
    assert certificate.effect_kept == pytest.approx(1.0, abs=1e-3)


def tamper(monkeypatch: pytest.MonkeyPatch, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    """Changes the weights between their writing and the reading of the folder."""
    complete = merging.complete_folder

    def wrong(folder: Path, *args: Any, **more: Any) -> None:
        complete(folder, *args, **more)
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    monkeypatch.setattr(merging, "complete_folder", wrong)


def test_one_weight_without_its_part_of_a_light_adapter_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Too little for the logits' tolerance: it is seen in the weights."""
    base = write_base(tmp_path / "base")
    adapter = save(base, {"type": "lora"}, "float32", lightly)
    name = "model.layers.1.mlp.down_proj.weight"
    before = load_file(base / "model.safetensors")[name]
    tamper(monkeypatch, lambda tensors: tensors.update({name: before}))
    with pytest.raises(CertificateError, match=f"1 weights are not as they were written .first: {name}"):
        lamina.merge(adapter, tmp_path / "merged")


# --- a model whose logits rounding moves by more than the dtype's spacing suggests


def wild(seed: int, scale: float = 1.2) -> tuple[Injection, list[Probe]]:
    """A large random adapter: differences grow from layer to layer."""
    injection = inject(build_model("llama", vocab_size=259), METHOD_CONFIGS["lora"](r=8, lora_alpha=16), seed=0)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in injection.tensors().values():
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * scale)
    return injection, record_probes(injection, build_template(build_tokenizer()))


def replay(injection: Injection, probes: list[Probe]) -> Certificate:
    count = len(injection.layers)
    return replay_on_model(
        injection.model,
        probes,
        subject="test",
        adapter_digest="",
        modules_expected=count,
        modules_matched=count,
        trained_dtype="float32",
    )


def test_rounding_is_measured_where_the_spacing_is_not_enough() -> None:
    measured = 0
    for seed in range(8):
        injection, probes = wild(seed)
        fold_in(injection)
        certificate = replay(injection, probes)
        assert certificate.passed, certificate.line()
        measured += any("rounding alone changes" in note for note in certificate.notes)
    assert measured, "no model of this test is sensitive enough"


def test_a_module_less_is_no_rounding_in_such_a_model() -> None:
    for seed in range(4):
        injection, probes = wild(seed)
        for name in ("model.layers.0.self_attn.v_proj", "model.layers.1.mlp.up_proj"):
            injection.layers[name].enabled = False
            assert not replay(injection, probes).passed
            injection.layers[name].enabled = True
