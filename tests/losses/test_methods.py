"""DPO and reward models with every method, and on quantized bases."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

import lamina
from lamina.config import METHOD_CONFIGS
from lamina.errors import AdapterError
from lamina.methods.shared.base import find_method
from lamina.methods.shared.score import SCORE, SCORE_TENSOR, score_head
from lamina.runs.events import Step
from tests.support.preferences import losses_of, preference_settings

# BitFit needs biases, which the tiny Llama has not; `peft` and AdaLoRA need more settings.
METHODS = {name: {} for name in METHOD_CONFIGS if name not in ("bitfit", "peft", "adalora")} | {
    "adalora": {"init_r": 4, "target_r": 2, "tinit": 1, "tfinal": 1},
    "peft": {"peft_type": "OFT", "oft_block_size": 8},
    "lora-dora": {"use_dora": True},
    "lora-pissa": {"init_lora_weights": "pissa", "r": 4},
    "lora-head": {"modules_to_save": ["lm_head"], "r": 4},
    "lora-on-head": {"target_modules": ["lm_head", "q_proj"], "r": 4},
}


def settings_of(name: str) -> dict[str, Any]:
    narrow = {"r": 4} if name in ("lora", "dora", "loha", "vera") else {}
    return {"type": name.partition("-")[0], **narrow, **METHODS[name]}


def run_of(folder: Path, model: Path, loss: dict[str, Any], method: dict[str, Any], **changes: Any) -> lamina.Run:
    values = preference_settings(folder, model, loss, "run", **changes)
    values["method"] = method
    values["train"] = {**values["train"], "max_steps": 3, "eval_steps": 3}
    return lamina.train(values)


@pytest.mark.parametrize("name", METHODS)
def test_dpo_with_every_method(name: str, tmp_path: Path, model_folder: Path) -> None:
    run = run_of(tmp_path, model_folder, {"type": "dpo"}, settings_of(name))
    losses = losses_of(run)
    method = find_method(METHODS.get(name, {}).get("type", name.partition("-")[0]))
    if method.starts_as_base:
        assert losses[0] == pytest.approx(math.log(2), abs=1e-4)
    assert losses[-1] != losses[0]
    assert run.summary is not None
    assert lamina.evaluate(run.path).loss == pytest.approx(run.summary.eval_loss, rel=1e-3)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("loss", ["dpo", "kto", "simpo", "reward"])
def test_on_a_quantized_base(loss: str, bits: int, tmp_path: Path, model_folder: Path) -> None:
    quantized = {"quantization": {"bits": bits}}
    run = run_of(tmp_path, model_folder, {"type": loss}, {"type": "lora", "r": 4}, **quantized)
    steps = list(run.events(Step))
    if loss == "dpo":
        assert steps[0].loss == pytest.approx(math.log(2), abs=1e-5)
    assert all(math.isfinite(step.loss) for step in steps)
    assert run.summary is not None
    assert lamina.evaluate(run.path).loss == pytest.approx(run.summary.eval_loss, rel=1e-3)


@pytest.mark.parametrize("name", ["lora", "dora", "ia3", "lokr", "bottleneck", "prompt_tuning", "prefix_tuning"])
def test_a_reward_models_head_is_a_part_of_its_adapter(name: str, tmp_path: Path, model_folder: Path) -> None:
    run = run_of(tmp_path, model_folder, {"type": "reward"}, settings_of(name))
    loaded = lamina.load(run.path)
    head = score_head(loaded.model)
    assert head is not None
    assert SCORE_TENSOR in loaded.adapter.tensors
    torch.testing.assert_close(head.weight.detach().cpu(), loaded.adapter.tensors[SCORE_TENSOR])
    assert run.summary is not None
    assert lamina.evaluate(loaded).loss == pytest.approx(run.summary.eval_loss, rel=1e-4)
    assert loaded.certify().passed, "the language model's probes still hold"
    with pytest.raises(AdapterError, match="reward model"):
        lamina.merge(run.path, tmp_path / "merged")


def test_peft_gives_a_reward_model_the_same_scores(tmp_path: Path, model_folder: Path) -> None:
    peft = pytest.importorskip("peft")
    from transformers import AutoModelForSequenceClassification

    run = run_of(tmp_path, model_folder, {"type": "reward"}, {"type": "lora", "r": 4})
    content = json.loads((run.adapter / "adapter_config.json").read_text())
    assert content["task_type"] == "SEQ_CLS"
    assert content["modules_to_save"] == [SCORE]
    assert SCORE not in content["target_modules"]
    loaded = lamina.load(run.path)
    theirs = AutoModelForSequenceClassification.from_pretrained(model_folder, num_labels=1, dtype=torch.float32)
    theirs = peft.PeftModel.from_pretrained(theirs, run.adapter).eval()
    head = score_head(loaded.model)
    assert head is not None
    for length in (3, 11, 30):
        ids = torch.randint(3, 200, (1, length))
        with torch.no_grad():
            hidden = loaded.model.model(input_ids=ids, use_cache=False).last_hidden_state
            ours = head(hidden[:, -1])[:, 0]
            expected = theirs(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[:, 0]
        torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-6)


def test_a_damaged_head_is_noticed(tmp_path: Path, model_folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    run = run_of(tmp_path, model_folder, {"type": "reward"}, {"type": "lora", "r": 4})
    file = run.adapter / "adapter_model.safetensors"
    tensors = load_file(file)
    tensors[SCORE_TENSOR] = tensors[SCORE_TENSOR] + 1
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(AdapterError, match="changed after training"):
        lamina.load(run.path)
