"""The first loss of a run is TRL's: the same rows, tokens and tokens in the loss, at the same place of the adapter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from lamina.compat.trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

trl = pytest.importorskip("trl")
if not hasattr(trl, "SFTTrainer"):
    pytest.skip("trl is not installed", allow_module_level=True)

CHATS = [
    {"messages": [{"role": "user", "content": "a" * n}, {"role": "assistant", "content": "b" * (2 * n)}]}
    for n in (1, 3, 5, 9)
]
PAIRS = [{"prompt": "ab" * n, "completion": "cd" * n} for n in (1, 3, 5, 9)]
TALKS = [
    {"prompt": [{"role": "user", "content": "a" * n}], "completion": [{"role": "assistant", "content": "b" * n}]}
    for n in (1, 3, 5, 9)
]
TEXTS = [{"text": "abc " * n} for n in (1, 3, 5, 9)]
SETTINGS: dict[str, Any] = {
    "max_steps": 1,
    "per_device_train_batch_size": 4,
    "max_length": 64,
    "logging_steps": 1,
    "report_to": "none",
    "save_strategy": "no",
    "bf16": False,
}


def adapter() -> peft.LoraConfig:
    """A new adapter, which leaves the outputs as they are."""
    return peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")


def first_loss(trainer: Any) -> float:
    """The loss of the first step, which was logged."""
    trainer.train()
    return next(entry["loss"] for entry in trainer.state.log_history if "loss" in entry)


@pytest.mark.parametrize(
    ("rows", "settings"),
    [
        (CHATS, {}),
        (TALKS, {"completion_only_loss": False}),
        (PAIRS, {}),
        (TEXTS, {}),
        (TEXTS, {"max_length": 12}),
        (TEXTS, {"packing": True}),
        (TEXTS, {"max_length": ...}),
        (TEXTS, {"loss_type": "dft"}),
    ],
    ids=["chats", "prompts whole", "plain prompts", "texts", "texts cut", "texts packed", "default length", "dft"],
)
def test_supervised(rows: list[dict[str, Any]], settings: dict[str, Any], model_folder: Path, tmp_path: Path) -> None:
    import datasets

    given = {name: value for name, value in {**SETTINGS, **settings}.items() if value is not ...}
    model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)
    theirs = trl.SFTTrainer(
        model,
        trl.SFTConfig(str(tmp_path / "theirs"), use_cpu=True, **given),
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(model_folder),
        peft_config=adapter(),
    )
    ours = SFTTrainer(
        AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32),
        SFTConfig(str(tmp_path / "ours"), **given),
        rows,
        peft_config=adapter(),
    )
    # DFT's loss is small where the right tokens are improbable; TRL's log has four digits.
    assert first_loss(ours) == pytest.approx(first_loss(theirs), abs=1e-4 if "loss_type" in settings else 2e-3)


def test_of_prompts_the_answer_without_the_line_break_after_it(model_folder: Path, tmp_path: Path) -> None:
    """TRL has what the template writes after the stop token in the loss of a completion; lamina ends with the token."""
    model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    losses: list[float] = []
    for row in TALKS:
        turns = [*row["prompt"], *row["completion"]]
        start = tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True, return_dict=False)
        ids = tokenizer.apply_chat_template(turns, return_dict=False)[:-1]  # without the line break
        logs = model(input_ids=torch.tensor([ids])).logits.log_softmax(-1)[0]
        losses += [-logs[place - 1, ids[place]].item() for place in range(len(start), len(ids))]
    ours = SFTTrainer(model, SFTConfig(str(tmp_path / "ours"), **SETTINGS), TALKS, peft_config=adapter())
    assert first_loss(ours) == pytest.approx(sum(losses) / len(losses), abs=2e-3)


def test_preferences(model_folder: Path, tmp_path: Path) -> None:
    """A new adapter is its reference, so the first loss is log 2 whatever the rows; its gradient is not compared."""
    rows = [{**row, "chosen": row["completion"], "rejected": "no"} for row in PAIRS]
    ours = DPOTrainer(str(model_folder), None, DPOConfig(str(tmp_path / "ours"), **SETTINGS), train_dataset=rows,
                      peft_config=adapter())  # fmt: skip
    assert first_loss(ours) == pytest.approx(0.6931, abs=1e-3)
