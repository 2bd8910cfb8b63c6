"""The settings that guides to LoRA and QLoRA show, one test a snippet: as a script through `lamina.compat`, or as a
configuration. The quick ones run on a two-layer model, all of them on SmolLM2 (`real`)."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from datasets import Dataset
from transformers import pipeline

import lamina
from lamina.compat.peft import (
    AutoPeftModelForCausalLM,
    LoraConfig,
    PeftConfig,
    PeftModel,
    get_peft_model,
    prepare_model_for_kbit_training,
)
from lamina.compat.transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig
from lamina.compat.trl import SFTConfig, SFTTrainer
from lamina.errors import AdapterError, LaminaError
from lamina.runs import Run

ROWS = [
    {
        "messages": [
            {"role": "system", "content": "You are brief."},
            {"role": "user", "content": f"What comes after {n}?"},
            {"role": "assistant", "content": str(n + 1)},
        ]
    }
    for n in range(8)
]
TEXTS = [{"text": f"### Human: What comes after {n}?### Assistant: {n + 1}"} for n in range(8)]
QLORA = {
    "load_in_4bit": True,
    "bnb_4bit_quant_type": "nf4",
    "bnb_4bit_use_double_quant": True,
    "bnb_4bit_compute_dtype": torch.bfloat16,
}
FOUR = ["q_proj", "k_proj", "v_proj", "o_proj"]
SEVEN = [*FOUR, "gate_proj", "up_proj", "down_proj"]


@dataclass(frozen=True)
class Snippet:
    """What one snippet sets.

    Attributes:
        args: The trainer's settings.
        adapter: The adapter's configuration; None trains with the defaults of the guides.
        rows: The data.
        bnb: Settings of `BitsAndBytesConfig`; None leaves the base unquantized.
        quick: Whether it runs on the two-layer model by default.
        others: Other arguments of the trainer.
        model: Other arguments of the base's loader.
    """

    args: dict[str, Any] = field(default_factory=dict)
    adapter: Callable[[], Any] = lambda: LoraConfig(
        r=16, lora_alpha=32, lora_dropout=0.05, target_modules=FOUR, bias="none", task_type="CAUSAL_LM"
    )
    rows: Any = field(default_factory=lambda: ROWS)
    bnb: dict[str, Any] | None = None
    quick: bool = False
    others: dict[str, Any] = field(default_factory=dict)
    model: dict[str, Any] = field(default_factory=dict)


SNIPPETS = {
    "trl arguments": Snippet(
        {
            "num_train_epochs": 3,
            "per_device_train_batch_size": 4,
            "gradient_accumulation_steps": 4,
            "learning_rate": 2e-4,
            "lr_scheduler_type": "cosine",
            "warmup_ratio": 0.05,
            "logging_steps": 10,
            "save_steps": 100,
            "save_strategy": "steps",
            "optim": "adamw_torch_fused",
            "bf16": True,
            "report_to": "none",
            "max_grad_norm": 0.3,
            "group_by_length": True,
        },
        quick=True,
    ),
    "qlora": Snippet(
        {"learning_rate": 2e-4, "optim": "paged_adamw_8bit", "gradient_checkpointing": True, "bf16": True},
        bnb=QLORA,
        quick=True,
    ),
    "8 bits": Snippet({"optim": "adamw_bnb_8bit"}, bnb={"load_in_8bit": True}),
    "packing and length": Snippet({"packing": True, "max_seq_length": 256, "report_to": "tensorboard"}, rows=TEXTS),
    "formatting function": Snippet(
        rows=[{"instruction": "Add 1.", "output": str(n)} for n in range(8)],
        others={"formatting_func": lambda row: f"### Instruction: {row['instruction']}\n### Response: {row['output']}"},
        quick=True,
    ),
    "human and assistant as text": Snippet(
        {"dataset_text_field": "text", "fp16": True}, lambda: LoraConfig(r=16, lora_alpha=16), TEXTS
    ),
    "a data set as an object": Snippet({"learning_rate": 2e-4}, rows=Dataset.from_list(ROWS), quick=True),
    "float16": Snippet(
        {"fp16": True, "optim": "adamw_8bit"},
        bnb={**QLORA, "bnb_4bit_compute_dtype": torch.float16},
        model={"torch_dtype": torch.float16},
    ),
    "seven modules with peft's own configuration": Snippet(
        adapter=lambda: peft.LoraConfig(
            r=16, lora_alpha=32, lora_dropout=0.05, target_modules=SEVEN, task_type=peft.TaskType.CAUSAL_LM
        ),
        quick=True,
    ),
    "all linear layers": Snippet(adapter=lambda: peft.LoraConfig(r=8, target_modules="all-linear")),
    "rank-stabilized": Snippet(adapter=lambda: LoraConfig(r=8, target_modules=FOUR, use_rslora=True)),
    "dora": Snippet(adapter=lambda: LoraConfig(r=8, target_modules=["q_proj", "v_proj"], use_dora=True)),
    "qdora": Snippet(adapter=lambda: LoraConfig(r=8, target_modules=["q_proj", "v_proj"], use_dora=True), bnb=QLORA),
    "pissa": Snippet(adapter=lambda: LoraConfig(r=4, target_modules=FOUR, init_lora_weights="pissa")),
    "adalora": Snippet(
        {"max_steps": 4},
        lambda: peft.AdaLoraConfig(init_r=8, target_r=4, total_step=4, target_modules=["q_proj", "v_proj"]),
    ),
    "ia3": Snippet(
        adapter=lambda: peft.IA3Config(
            target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"]
        )
    ),
    "prefix tuning": Snippet(adapter=lambda: peft.PrefixTuningConfig(num_virtual_tokens=8)),
    "prompt tuning": Snippet(adapter=lambda: peft.PromptTuningConfig(num_virtual_tokens=8)),
}

quick = [name for name, snippet in SNIPPETS.items() if snippet.quick]
slow = [pytest.param(name, marks=pytest.mark.slow) for name in SNIPPETS if name not in quick]


def run(name: str, model: str, folder: Path, steps: int) -> SFTTrainer:
    """Runs a snippet as a guide's script does."""
    snippet = SNIPPETS[name]
    quantized = None if snippet.bnb is None else BitsAndBytesConfig(**snippet.bnb)
    base = AutoModelForCausalLM.from_pretrained(
        model, quantization_config=quantized, device_map="auto", **snippet.model
    )
    if snippet.bnb is not None:
        base = prepare_model_for_kbit_training(base)
    length = {} if {"max_steps", "num_train_epochs"} & set(snippet.args) and steps > 1 else {"max_steps": steps}
    args = SFTConfig(output_dir=str(folder / "out"), **{**snippet.args, **length})
    trainer = SFTTrainer(
        model=base, args=args, train_dataset=snippet.rows, peft_config=snippet.adapter(), **snippet.others
    )
    trainer.train()
    return trainer


@pytest.mark.filterwarnings("ignore::lamina.errors.LaminaWarning")
@pytest.mark.parametrize("name", [*quick, *slow])
def test_snippets(name: str, model_folder: Path, tmp_path: Path) -> None:
    steps = 4 if name == "adalora" else 1
    trainer = run(name, str(model_folder), tmp_path, steps)
    assert trainer.run is not None and trainer.run.status == "finished"
    assert (trainer.run.adapter / "adapter_config.json").is_file()


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::lamina.errors.LaminaWarning")
@pytest.mark.parametrize("name", SNIPPETS)
def test_snippets_on_a_real_model(name: str, tmp_path: Path) -> None:
    trainer = run(name, "smollm2-135m", tmp_path, 2)
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses and all(loss > 0 for loss in losses)


def test_from_training_to_a_pipeline(model_folder: Path, tmp_path: Path) -> None:
    """Train, save the adapter alone, load it again in each way, generate, merge, and use transformers' pipeline."""
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    tokenizer.pad_token = tokenizer.eos_token
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(str(model_folder)), LoraConfig(r=4, lora_alpha=8))
    args = SFTConfig(output_dir=str(tmp_path / "output"), max_steps=2, save_steps=1, learning_rate=1e-3)
    trainer = SFTTrainer(model=model, args=args, train_dataset=ROWS, tokenizer=tokenizer)
    trainer.train()
    trainer.save_model(tmp_path / "saved")
    model.save_pretrained(tmp_path / "lora-adapter")
    for place in ("output", "saved", "lora-adapter"):
        loaded = AutoPeftModelForCausalLM.from_pretrained(tmp_path / place, device_map="auto")
        inputs = tokenizer("What comes", return_tensors="pt")
        answer = loaded.generate(**inputs, max_new_tokens=4, do_sample=False)
        assert answer.shape[1] <= inputs["input_ids"].shape[1] + 4
        assert tokenizer.decode(answer[0], skip_special_tokens=True).startswith("What comes")
    merged = PeftModel.from_pretrained(str(model_folder), tmp_path / "saved").merge_and_unload()
    merged.save_pretrained(tmp_path / "merged", safe_serialization=True)
    tokenizer.save_pretrained(tmp_path / "merged")
    generate = pipeline("text-generation", model=str(tmp_path / "merged"), max_new_tokens=4)
    assert generate("What comes", do_sample=True, temperature=0.1)[0]["generated_text"].startswith("What comes")
    assert Run(tmp_path / "output").status == "finished"


def test_a_checkpoint_of_a_quantized_run_is_loaded_and_merged_on_the_cpu(model_folder: Path, tmp_path: Path) -> None:
    """The guides' `output/checkpoint-100`, `device_map="cpu"` and `torch.float16` for merging."""
    base = AutoModelForCausalLM.from_pretrained(str(model_folder), quantization_config=BitsAndBytesConfig(**QLORA))
    args = SFTConfig(output_dir=str(tmp_path / "output"), max_steps=2, save_steps=1, save_total_limit=5)
    SFTTrainer(model=base, args=args, train_dataset=ROWS, peft_config=LoraConfig(r=4, lora_alpha=8)).train()
    for step in (1, 2):
        path = tmp_path / "output" / f"checkpoint-{step}"
        loaded = AutoPeftModelForCausalLM.from_pretrained(path, device_map="cpu", torch_dtype=torch.float16)
        assert loaded.device.type == "cpu" and loaded.peft_config["default"].r == 4
        assert PeftConfig.from_pretrained(path).peft_type == "LORA"
    merged = loaded.merge_and_unload()
    merged.save_pretrained(tmp_path / "merged", safe_serialization=True)
    assert (tmp_path / "merged" / "model.safetensors").is_file()
    assert not any("lora" in name for name, _ in merged.named_parameters())
    with pytest.raises(AdapterError, match="checkpoint-7: there is no such run or adapter folder"):
        AutoPeftModelForCausalLM.from_pretrained(tmp_path / "output" / "checkpoint-7")


def test_two_adapters_on_one_base(model_folder: Path, tmp_path: Path) -> None:
    """The guides' `load_adapter` and `set_adapter`, as lamina has them."""
    for name, rate in (("one", 1e-2), ("two", 2e-2)):
        args = SFTConfig(output_dir=str(tmp_path / name), max_steps=1, learning_rate=rate)
        SFTTrainer(str(model_folder), args, ROWS, peft_config=LoraConfig(r=4)).train()
    first = lamina.load(tmp_path / "one")
    second = first.load_beside(tmp_path / "two")
    ids = torch.tensor([[1, 2, 3]])
    for loaded, name in ((first, "one"), (second, "two")):
        alone = AutoPeftModelForCausalLM.from_pretrained(tmp_path / name)
        torch.testing.assert_close(loaded.model(input_ids=ids).logits, alone(input_ids=ids).logits)
    assert not torch.equal(first.model(input_ids=ids).logits, second.model(input_ids=ids).logits)


def test_what_is_not_on_this_machine_says_the_way(model_folder: Path, tmp_path: Path) -> None:
    """A hub's data set, a tracker without its package or account, and pushing."""
    args = SFTConfig(output_dir=str(tmp_path / "out"), max_steps=1, report_to="wandb", push_to_hub=True)
    trainer = SFTTrainer(str(model_folder), args, ROWS, peft_config=LoraConfig(r=4))
    assert trainer.config.train.report_to == ["wandb"]
    (pushed,) = [row for row in trainer.translation.rows if row.name == "push_to_hub"]
    assert "lamina registry push" in pushed.note
    with pytest.raises(LaminaError, match="could not be loaded from the hub"):
        lamina.train(data="some/data:train", model=model_folder, output_dir=tmp_path / "hub")


# Methods and variants of the guides, as a configuration.
CONFIGS: dict[str, dict[str, Any]] = {
    "lora": {"method": {"type": "lora", "r": 8, "lora_alpha": 16, "lora_dropout": 0.05, "bias": "none"}},
    "task type": {"method": {"type": "lora", "task_type": "CAUSAL_LM"}},
    "qlora": {"method": {"type": "lora"}, "quantization": {"bits": 4, "quant_type": "nf4", "double_quant": True}},
    "lora+": {"method": {"type": "lora"}, "train": {"loraplus_lr_ratio": 16.0}},
    "adalora": {"method": {"type": "adalora", "init_r": 16, "target_r": 8}},
    "loftq": {"method": {"type": "lora", "init_lora_weights": "loftq"}, "quantization": {"bits": 4}},
    "galore": {"method": {"type": "full"}, "train": {"optim": "galore_adamw", "galore": {"rank": 8}}},
    "prefix": {"method": {"type": "prefix_tuning", "num_virtual_tokens": 20}},
    "adapters": {"method": {"type": "bottleneck", "variant": "houlsby"}},
    "ia3": {"method": {"type": "ia3"}},
    "full": {"method": {"type": "full"}},
    "qdora": {"method": {"type": "dora"}, "quantization": {"bits": 4}},
    "8 bits": {"method": {"type": "lora"}, "quantization": {"bits": 8}},
    "rank-stabilized": {"method": {"type": "lora", "use_rslora": True}},
    "pissa": {"method": {"type": "lora", "init_lora_weights": "pissa"}},
    "vera": {"method": {"type": "vera"}},
    "loha": {"method": {"type": "loha"}},
    "distillation": {"loss": {"type": "distillation", "teacher": "BASE"}},
    "a function of a row as a template": {
        "data": {
            "columns": {
                "prompt": "{{ text.split('### Human:')[1].split('### Assistant:')[0] | trim }}",
                "completion": "{{ text.split('### Assistant:')[1] | trim }}",
            }
        }
    },
}


def configured(name: str, model: str, folder: Path) -> Run:
    """Trains with a configuration on the guides' texts, for two steps."""
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in TEXTS), encoding="utf-8")
    given = json.loads(json.dumps(CONFIGS[name]).replace('"BASE"', json.dumps(model)))
    data = {"train": str(path), "eval": None, "max_length": 64, **given.get("data", {})}
    train = {"max_steps": 2, "per_device_train_batch_size": 1, **given.get("train", {})}
    return lamina.train({**given, "model": model, "data": data, "train": train, "output_dir": str(folder / "out")})


@pytest.mark.parametrize("name", CONFIGS)
def test_configurations(name: str, model_folder: Path, tmp_path: Path) -> None:
    run = configured(name, str(model_folder), tmp_path)
    assert run.status == "finished" and run.summary is not None and run.summary.steps == 2
    lamina.load(run.path)


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
def test_configurations_on_a_real_model(name: str, tmp_path: Path) -> None:
    summary = configured(name, "smollm2-135m", tmp_path).summary
    assert summary is not None and summary.train_loss_last is not None and summary.train_loss_last > 0
