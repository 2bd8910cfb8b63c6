"""What lies beside a finished adapter: the tokenizer with its template, and a model card; it depends on neither."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from peft import AutoPeftModelForCausalLM
from transformers import AutoTokenizer

import lamina
from lamina.adapters.adapter import read_adapter
from lamina.adapters.load import load
from lamina.chat.tokenizer import fingerprint_tokenizer
from lamina.runs import Run
from tests.support.models_zoo import build_model, build_tokenizer
from tests.support.training import settings

IDS = torch.tensor([[5, 9, 17, 33, 4, 101, 7, 60]])


def short(folder: Path, model: Path, **changes: Any) -> Run:
    train = {"max_steps": 2, "eval_steps": None, "save_steps": 2, **changes.pop("train", {})}
    return lamina.train(settings(folder, model, train=train, **changes))


def test_tokenizer_and_model_load_from_the_adapters_folder_alone(model_folder: Path, tmp_path: Path) -> None:
    run = short(tmp_path, model_folder)
    tokenizer = AutoTokenizer.from_pretrained(run.adapter)
    assert fingerprint_tokenizer(tokenizer) == fingerprint_tokenizer(build_tokenizer())
    asked = [{"role": "user", "content": "red"}]
    theirs = build_tokenizer().apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
    assert tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True) == theirs
    model = AutoPeftModelForCausalLM.from_pretrained(run.adapter).eval()
    with torch.no_grad():
        ours = load(run.path, dtype="float32").model(IDS).logits
        torch.testing.assert_close(model(IDS).logits, ours, rtol=0, atol=1e-5)


def test_the_adapter_does_not_depend_on_what_lies_beside_it(model_folder: Path, tmp_path: Path) -> None:
    run = short(tmp_path, model_folder)
    before = read_adapter(run.adapter)
    for path in run.adapter.iterdir():
        if path.name not in ("adapter_config.json", "adapter_model.safetensors", "lamina.json"):
            path.unlink()
    after = read_adapter(run.adapter)
    assert (after.digest, after.lock) == (before.digest, before.lock)
    assert lamina.load(run.path).certify().passed


@pytest.mark.parametrize("eos", ["<|im_end|>", "<|endoftext|>"])
def test_the_template_and_the_stop_token_of_training_go_along(eos: str, tmp_path: Path) -> None:
    """Whatever the base's own are."""
    tokenizer = build_tokenizer()
    tokenizer.chat_template, tokenizer.eos_token = None, eos
    build_model("llama", vocab_size=len(tokenizer)).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    run = short(tmp_path, tmp_path / "base", data={"chat_template": "chatml"})
    written = AutoTokenizer.from_pretrained(run.adapter)
    assert written.eos_token == "<|im_end|>"
    assert "<|im_start|>" in written.chat_template
    assert fingerprint_tokenizer(written) == fingerprint_tokenizer(tokenizer)


def test_the_card_says_what_it_is_and_its_commands_are_right(model_folder: Path, tmp_path: Path) -> None:
    run = short(tmp_path, model_folder, method={"target_modules": ["q_proj"], "r": 20})
    card = (run.adapter / "README.md").read_text()
    _, about, text = card.split("---\n", 2)
    facts = yaml.safe_load(about)
    assert facts["license"] == "unknown" and facts["library_name"] == "peft" and "lora" in facts["tags"]
    assert "base_model" not in facts  # a path of this machine is no name on the hub
    summary, report = run.summary, json.loads(run.data_report_path.read_text())["files"][0]
    assert summary is not None
    for part in (
        str(model_folder),
        "rows.jsonl",
        f"{report['train_rows']} rows trained on",
        f"{summary.trainable_parameters:,} of {summary.total_parameters:,}",
        summary.adapter_digest,
        "r 20",
        'target_modules ["q_proj"]',
        "--max-lora-rank 32",
        "AutoPeftModelForCausalLM",
        "lamina chat FOLDER",
    ):
        assert part in text, part


def test_a_method_that_peft_and_vllm_do_not_have_is_not_said_to_load_there(model_folder: Path, tmp_path: Path) -> None:
    values = settings(tmp_path, model_folder, train={"max_steps": 1})
    run = lamina.train({**values, "method": {"type": "bottleneck"}})
    card = (run.adapter / "README.md").read_text()
    assert "peft does not have this method" in card
    assert "vllm serve" not in card
