"""lamina's training against a loop written by hand with transformers and peft: the same losses, step by step."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, get_scheduler

import lamina
from lamina.config import load_config
from lamina.data.packing import plan_epoch
from lamina.methods.shared.base import inject
from lamina.models.source import find_model
from lamina.quickstart.task import build_task
from lamina.runs.events import Event, Step
from tests.support.training import write_rows


def settings(model: str, data: Path, out: Path, steps: int = 20, max_length: int = 256) -> dict[str, Any]:
    return {
        "model": model,
        "data": {"train": str(data), "eval": None, "packing": False, "max_length": max_length},
        "method": {"type": "lora", "r": 8, "lora_alpha": 16},
        "train": {
            "max_steps": steps,
            "per_device_train_batch_size": 1,
            "gradient_accumulation_steps": 2,
            "learning_rate": 1e-3,
            "warmup_steps": 3,
            "weight_decay": 0.01,
        },
        "dtype": "float32",
        "output_dir": str(out),
    }


def encoded(tokenizer: Any, messages: list[dict[str, str]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and labels by transformers' own template call: everything from the generation prompt to the stop token."""
    ids = tokenizer(tokenizer.apply_chat_template(messages, tokenize=False), add_special_tokens=False).input_ids
    prompt = tokenizer.apply_chat_template(messages[:-1], tokenize=False, add_generation_prompt=True)
    begin = len(tokenizer(prompt, add_special_tokens=False).input_ids)
    end = ids.index(tokenizer.convert_tokens_to_ids("<|im_end|>"), begin)
    labels = [token if begin <= place <= end else -100 for place, token in enumerate(ids)]
    return torch.tensor([ids]), torch.tensor([labels])


def losses_of_a_bare_loop(values: dict[str, Any], conversations: list[list[dict[str, str]]]) -> list[float]:
    """One document at a time, no packing, transformers' own loss, peft's LoRA, torch's AdamW."""
    config = load_config(values)
    steps = values["train"]["max_steps"]
    folder = find_model(config.model).folder
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rows = [encoded(tokenizer, messages) for messages in conversations]
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    start = inject(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), config.method, config.seed)
    names = sorted({name.rpartition(".")[2] for name in start.layers})
    model = peft.get_peft_model(model, peft.LoraConfig(r=8, lora_alpha=16, target_modules=names, task_type="CAUSAL_LM"))
    peft.set_peft_model_state_dict(model, {name: tensor.detach() for name, tensor in start.tensors().items()})
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.01, foreach=False)
    schedule = get_scheduler("cosine", optimizer, num_warmup_steps=3, num_training_steps=steps)
    order = [
        index
        for epoch in range(steps)
        for batch in plan_epoch([ids.shape[1] for ids, _ in rows], 1, config.data.max_length, False, config.seed, epoch)
        for index in batch
    ]
    model.train()
    losses = []
    for step in range(steps):
        chosen = [rows[index] for index in order[2 * step : 2 * step + 2]]
        supervised = sum(int((labels != -100).sum()) for _, labels in chosen)
        total = 0.0
        for ids, labels in chosen:
            loss = model(input_ids=ids, labels=labels, use_cache=False).loss * int((labels != -100).sum()) / supervised
            loss.backward()
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(total)
    return losses


def losses_of_lamina(values: dict[str, Any]) -> list[float]:
    losses: list[float] = []

    def on_event(event: Event) -> None:
        if isinstance(event, Step):
            losses.append(event.loss)

    lamina.train(values, on_event)
    return losses


def test_tiny_model(model_folder: Path, tmp_path: Path) -> None:
    data = write_rows(tmp_path / "rows.jsonl", count=60)
    rows = [json.loads(line) for line in data.read_text().splitlines()]
    conversations = [
        [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["completion"]}]
        for row in rows
    ]
    values = settings(str(model_folder), data, tmp_path / "run")
    assert losses_of_lamina(values) == pytest.approx(losses_of_a_bare_loop(values, conversations), abs=1e-4)


@pytest.mark.real
@pytest.mark.slow
def test_real_model(tmp_path: Path) -> None:
    conversations = [request.messages() for request in build_task(0, 50, 10).train]
    data = tmp_path / "rows.jsonl"
    data.write_text("\n".join(json.dumps({"messages": messages}) for messages in conversations))
    values = settings("smollm2-135m", data, tmp_path / "run", steps=8, max_length=512)
    torch.set_num_threads(2)
    try:
        ours, theirs = losses_of_lamina(values), losses_of_a_bare_loop(values, conversations)
    finally:
        torch.set_num_threads(1)
    assert ours == pytest.approx(theirs, abs=1e-4)
    assert ours[-1] < 0.8 * ours[0]
