"""Merging: what is written, what is refused, and that nothing is left behind by a merge that fails."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import lamina
from lamina.adapters.adapter import save_adapter
from lamina.adapters.lock import build_lock
from lamina.chat.template import build_template
from lamina.config.methods.lora import LoraConfig
from lamina.engine.probes import record_probes
from lamina.errors import AdapterError, BaseMismatchError, CertificateError
from lamina.machine.hardware import multiplies_bf16_natively
from lamina.methods.shared.base import inject
from lamina.models.load import load_base
from lamina.quickstart.task import build_task
from tests.support.models_zoo import build_model, build_tokenizer

IDS = torch.tensor([[5, 9, 17, 33, 4, 101, 7, 60, 21]])


def make_adapter(ref: str, path: Path, dtype: str, scale: float) -> torch.Tensor:
    """Saves an adapter that does something, as training would, and gives its logits."""
    base = load_base(ref, dtype)
    template = build_template(base.tokenizer)
    injection = inject(base.model, LoraConfig(r=4, lora_alpha=8), seed=0)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, tensor in injection.tensors().items():
            if "lora_B" in name:
                tensor.normal_(0.0, scale, generator=generator)
        save_adapter(path, injection, base, build_lock(base, template, []), record_probes(injection, template))
        return base.model(input_ids=IDS).logits.float()


@pytest.fixture
def tiny(tmp_path: Path) -> Callable[..., tuple[Path, torch.Tensor]]:
    def build(family: str = "llama", dtype: str = "float32") -> tuple[Path, torch.Tensor]:
        build_model(family, vocab_size=259).save_pretrained(tmp_path / "base")
        build_tokenizer().save_pretrained(tmp_path / "base")
        return tmp_path / "adapter", make_adapter(str(tmp_path / "base"), tmp_path / "adapter", dtype, 0.15)

    return build


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
def test_plain_transformers_loads_the_merged_model(
    tiny: Callable[..., tuple[Path, torch.Tensor]], family: str, dtype: str, tmp_path: Path
) -> None:
    adapter, expected = tiny(family, dtype)
    merged = lamina.merge(adapter, tmp_path / "merged")
    model = AutoModelForCausalLM.from_pretrained(merged.path, dtype=getattr(torch, dtype))
    assert model.dtype == getattr(torch, dtype)
    tolerance = 1e-4 if dtype == "float32" else 0.05 * float(expected.abs().max())
    with torch.no_grad():
        torch.testing.assert_close(model(input_ids=IDS).logits.float(), expected, rtol=0, atol=tolerance)
    assert AutoTokenizer.from_pretrained(merged.path).chat_template == build_tokenizer().chat_template
    written = json.loads((merged.path / "lamina_certificate.json").read_text())
    assert written == merged.certificate.as_json()
    assert written["modules_matched"] == written["modules_expected"] > 0


@pytest.mark.parametrize("trained_in", ["float32", "bfloat16"])
def test_a_base_stored_in_float16_is_merged_in_float16(trained_in: str, tmp_path: Path) -> None:
    build_model("llama", vocab_size=259).half().save_pretrained(tmp_path / "base")
    build_tokenizer().save_pretrained(tmp_path / "base")
    expected = make_adapter(str(tmp_path / "base"), tmp_path / "adapter", trained_in, 0.15)
    loaded = lamina.load(tmp_path / "adapter", dtype="float16")
    assert loaded.model.dtype == torch.float16
    tolerance = 0.01 if trained_in == "float32" else 0.05
    largest = float(expected.abs().max())
    with torch.no_grad():
        torch.testing.assert_close(loaded.model(IDS).logits.float(), expected, rtol=0, atol=tolerance * largest)
    merged = lamina.merge(tmp_path / "adapter", tmp_path / "merged", dtype="float16")
    assert merged.certificate.passed and merged.certificate.dtype == "float16"
    config = json.loads((merged.path / "config.json").read_text())
    assert config["dtype"] == "float16"
    model = AutoModelForCausalLM.from_pretrained(merged.path, dtype="auto")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float16}
    with torch.no_grad():
        torch.testing.assert_close(model(IDS).logits.float(), expected, rtol=0, atol=tolerance * largest)


def test_a_failing_certificate_leaves_nothing(
    tiny: Callable[..., tuple[Path, torch.Tensor]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter, _ = tiny()
    monkeypatch.setattr("lamina.methods.lora.LoraLinear.delta_weight", lambda self: torch.zeros_like(self.weight))
    with pytest.raises(CertificateError, match="0% of the adapter's recorded effect"):
        lamina.merge(adapter, tmp_path / "out" / "merged")
    assert list((tmp_path / "out").iterdir()) == []


def test_another_base_is_refused_and_recorded_when_insisted_on(
    tiny: Callable[..., tuple[Path, torch.Tensor]], tmp_path: Path
) -> None:
    adapter, _ = tiny()
    other = build_model("llama", vocab_size=259)
    with torch.no_grad():
        other.model.norm.weight.mul_(1.001)  # near enough for the probes to pass
    other.save_pretrained(tmp_path / "other")
    build_tokenizer().save_pretrained(tmp_path / "other")
    with pytest.raises(BaseMismatchError, match=r"sha256:.*sha256:"):
        lamina.merge(adapter, tmp_path / "merged", model=str(tmp_path / "other"))
    with pytest.raises(CertificateError):  # insisting on the base does not switch the certificate off
        lamina.merge(adapter, tmp_path / "merged", model=str(tmp_path / "other"), allow_base_mismatch=True)
    loaded = lamina.load(adapter, model=str(tmp_path / "other"), allow_base_mismatch=True)
    assert "weights differ" in loaded.certify().notes[0]


def test_out_must_not_exist(tiny: Callable[..., tuple[Path, torch.Tensor]], tmp_path: Path) -> None:
    adapter, _ = tiny()
    with pytest.raises(AdapterError, match="already exists"):
        lamina.merge(adapter, tmp_path)


@pytest.mark.real
@pytest.mark.skipif(
    not multiplies_bf16_natively(torch.device("cpu")),
    reason="without bfloat16 hardware, the products of the real model take many minutes",
)
def test_real_model_in_bfloat16_with_peft_and_transformers(tmp_path: Path) -> None:
    """A trained adapter. The tolerance is that of the certificate: eight bfloat16 spacings at the largest logit."""
    task = build_task(0, 60, 10)
    data = tmp_path / "rows.jsonl"
    data.write_text("\n".join(json.dumps({"messages": request.messages()}) for request in task.train))
    config = {
        "data": {"train": str(data), "eval": None, "packing": False},
        "train": {"max_steps": 12, "per_device_train_batch_size": 4, "learning_rate": 2e-3},
        "dtype": "bfloat16",
        "output_dir": str(tmp_path / "run"),
    }
    torch.set_num_threads(2)
    try:
        run = lamina.train(config)
        loaded = lamina.load(run.path, dtype="bfloat16")
        text = loaded.tokenizer.apply_chat_template(task.eval[0].messages(), tokenize=False)
        ids = loaded.tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids
        base = load_base("smollm2-135m", "bfloat16").model
        with torch.no_grad():
            ours, bare = (model(input_ids=ids).logits.float() for model in (loaded.model, base))
            theirs = peft.PeftModel.from_pretrained(base, run.adapter).eval()(input_ids=ids).logits.float()
            merged = lamina.merge(run.path, tmp_path / "merged")
            plain = AutoModelForCausalLM.from_pretrained(merged.path, dtype=torch.bfloat16)(input_ids=ids).logits
    finally:
        torch.set_num_threads(1)
    tolerance = 8 * 2.0**-8 * float(ours.abs().max())
    assert (ours - bare).abs().max() > 3 * tolerance, "the adapter of the test does too little"
    assert merged.certificate.passed
    torch.testing.assert_close(theirs, ours, rtol=0, atol=tolerance)
    torch.testing.assert_close(plain.float(), ours, rtol=0, atol=tolerance)
