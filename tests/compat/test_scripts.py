"""Scripts for peft and TRL, as guides have them, run on lamina with their import lines changed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from lamina.compat.peft import (
    AutoPeftModelForCausalLM,
    LoraConfig,
    PeftModel,
    get_peft_model,
    prepare_model_for_kbit_training,
)
from lamina.compat.transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig
from lamina.compat.trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer
from lamina.errors import ConfigError, DataError, LaminaWarning

WORDS = ("red", "green", "blue", "round", "square", "small")
ROWS = [{"prompt": f"{WORDS[n % 6]} {n}", "completion": f"{WORDS[(n + 1) % 6]}!"} for n in range(12)]
CHATS = [
    {"messages": [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["completion"]}]}
    for row in ROWS
]
SHORT: dict[str, Any] = {"max_steps": 2, "per_device_train_batch_size": 2, "max_length": 64, "logging_steps": 1}


def lora(**changes: Any) -> LoraConfig:
    """The guides' configuration, smaller."""
    settings: dict[str, Any] = {
        "r": 4,
        "lora_alpha": 8,
        "lora_dropout": 0.0,
        "target_modules": ["q_proj", "v_proj"],
        "bias": "none",
        "task_type": "CAUSAL_LM",
    }
    return LoraConfig(**{**settings, **changes})


def test_the_whole_way(tmp_path: Path, model_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = AutoModelForCausalLM.from_pretrained(str(model_folder), torch_dtype=torch.float32, device_map="auto")
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    tokenizer.pad_token = tokenizer.eos_token
    model = get_peft_model(model, lora())
    model.print_trainable_parameters()
    assert "trainable params" in capsys.readouterr().out
    ids = torch.tensor([tokenizer("red 1").input_ids])
    before = model(input_ids=ids).logits
    args = SFTConfig(output_dir=str(tmp_path / "out"), learning_rate=1e-2, bf16=False, save_strategy="steps", **SHORT)
    trainer = SFTTrainer(
        model=model, args=args, train_dataset=CHATS, eval_dataset=CHATS[:3], processing_class=tokenizer
    )
    assert trainer.config.data.train_on == "all"  # as TRL
    assert trainer.config.train.lr_scheduler_type == "linear"
    output = trainer.train()
    assert output.global_step == 2
    assert trainer.evaluate()["eval_loss"] > 0
    assert [entry["step"] for entry in trainer.state.log_history if "loss" in entry] == [1, 2]
    after = model(input_ids=ids).logits
    assert not torch.equal(before, after)  # the script's own model has the trained adapter
    model.save_pretrained(tmp_path / "adapter")
    again = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter")
    torch.testing.assert_close(again(input_ids=ids).logits, after)
    torch.testing.assert_close(
        PeftModel.from_pretrained(str(model_folder), tmp_path / "out")(input_ids=ids).logits, after
    )
    merged = again.merge_and_unload()
    torch.testing.assert_close(merged(input_ids=ids).logits, after, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("given", "expected"), [({"gradient_accumulation_steps": 2}, 8), ({}, 4)])
def test_a_step_counts_for_each_process(
    given: dict[str, int], expected: int, tmp_path: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A script's step grows with the number of processes, as in TRL."""
    for name, value in {"RANK": "1", "WORLD_SIZE": "4", "MASTER_ADDR": "localhost"}.items():
        monkeypatch.setenv(name, value)
    args = SFTConfig(output_dir=str(tmp_path / "out"), **SHORT, **given)
    trainer = SFTTrainer(str(model_folder), args, CHATS, peft_config=lora())
    assert trainer.config.train.gradient_accumulation_steps == expected
    (row,) = [row for row in trainer.translation.rows if row.name == "WORLD_SIZE"]
    assert row.given == 4 and "for each process" in row.note


def test_peft_loads_what_is_saved_before_training(tmp_path: Path, model_folder: Path) -> None:
    import peft
    from transformers import AutoModelForCausalLM as Theirs

    model = get_peft_model(Theirs.from_pretrained(model_folder, dtype=torch.float32), lora())
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.1)
    model.save_pretrained(tmp_path / "adapter")
    ids = torch.tensor([[1, 2, 3]])
    theirs = peft.PeftModel.from_pretrained(
        Theirs.from_pretrained(model_folder, dtype=torch.float32), tmp_path / "adapter"
    )
    torch.testing.assert_close(model(input_ids=ids).logits, theirs(input_ids=ids).logits)


def test_a_loop_of_one_s_own(model_folder: Path) -> None:
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(str(model_folder), dtype="float32"), lora())
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert sum(parameter.numel() for parameter in trained) == model.get_nb_trainable_parameters()[0]
    optimizer = torch.optim.AdamW(trained, lr=1e-2)
    ids = torch.tensor([[1, 2, 3, 4]])
    losses = []
    for _ in range(5):
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


def test_qlora(tmp_path: Path, model_folder: Path) -> None:
    quantized = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    model = AutoModelForCausalLM.from_pretrained(str(model_folder), quantization_config=quantized, device_map="auto")
    model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=True)
    args = SFTConfig(output_dir=str(tmp_path / "out"), optim="paged_adamw_8bit", gradient_checkpointing=True, **SHORT)
    trainer = SFTTrainer(model=model, args=args, train_dataset=ROWS, peft_config=lora())
    assert trainer.config.quantization is not None
    assert (trainer.config.quantization.bits, trainer.config.train.optim) == (4, "paged_adamw_8bit")
    assert trainer.config.train.gradient_checkpointing is True


def test_formatting_functions(tmp_path: Path, model_folder: Path) -> None:
    def one(row: dict[str, Any]) -> str:
        return f"### Question: {row['prompt']}\n### Answer: {row['completion']}"

    def batch(rows: dict[str, Any]) -> list[str]:
        return [f"{a} -> {b}" for a, b in zip(rows["prompt"], rows["completion"], strict=True)]

    for number, function in enumerate((one, batch)):
        args = SFTConfig(output_dir=str(tmp_path / str(number)), **SHORT)
        trainer = SFTTrainer(str(model_folder), args, ROWS, peft_config=lora(), formatting_func=function)
        trainer.train()
        (path,) = (tmp_path / str(number) / "inputs").glob("*.jsonl")
        texts = [json.loads(line)["text"] for line in path.read_text(encoding="utf-8").splitlines()]
        assert texts == [one(row) if number == 0 else batch({k: [v] for k, v in row.items()})[0] for row in ROWS]
    with pytest.raises(DataError, match="formatting_func returned a int"):
        SFTTrainer(str(model_folder), SFTConfig(output_dir="x"), ROWS, formatting_func=lambda row: 3)


def test_formatting_functions_are_called_once_a_row(tmp_path: Path, model_folder: Path) -> None:
    seen: list[Any] = []

    def sometimes(row: dict[str, Any]) -> str:
        seen.append(row["prompt"])
        if row["prompt"] == ROWS[3]["prompt"]:
            raise ZeroDivisionError("no")
        return str(row["prompt"])

    trainer = SFTTrainer(
        str(model_folder), SFTConfig(str(tmp_path / "o"), **SHORT), ROWS, peft_config=lora(), formatting_func=sometimes
    )
    with pytest.raises(DataError, match="row 4: formatting_func fails with ZeroDivisionError: no"):
        trainer.train()
    assert seen == [row["prompt"] for row in (ROWS[0], *ROWS[:4])]  # the first one is looked at before


def test_a_generator_loses_no_row(tmp_path: Path, model_folder: Path) -> None:
    SFTTrainer(str(model_folder), SFTConfig(str(tmp_path / "out"), **SHORT), iter(ROWS), peft_config=lora()).train()
    (path,) = (tmp_path / "out" / "inputs").glob("*.jsonl")
    assert len(path.read_text(encoding="utf-8").splitlines()) == len(ROWS)


def test_settings_without_a_method_of_lamina_s_own_are_peft_s(model_folder: Path) -> None:
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(str(model_folder)), lora(lora_bias=True))
    assert model.origin.method is not None
    assert model.origin.method.type == "peft"
    first = get_peft_model(AutoModelForCausalLM.from_pretrained(str(model_folder)), lora(layers_to_transform=0))
    assert not any(".layers.1." in name for name, tensor in first.named_parameters() if tensor.requires_grad)


def test_parts_of_transformers_trainer(tmp_path: Path, model_folder: Path) -> None:
    absent = {"data_collator": None, "compute_metrics": None, "optimizers": (None, None)}
    args = SFTConfig(output_dir=str(tmp_path / "out"), **SHORT)
    assert (
        SFTTrainer(str(model_folder), args, train_dataset=ROWS, peft_config=lora(), **absent).config.train.max_steps
        == 2
    )
    with pytest.raises(ConfigError, match="data_collator: has no counterpart") as found:
        SFTTrainer(str(model_folder), args, train_dataset=ROWS, data_collator=object(), compute_metrics=print)
    assert [problem.field for problem in found.value.problems] == ["data_collator", "compute_metrics"]


def test_a_file_as_the_data(tmp_path: Path, model_folder: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    trainer = SFTTrainer(str(model_folder), SFTConfig(str(tmp_path / "out"), **SHORT), path, peft_config=lora())
    assert trainer.config.data.chat is False  # prompts that are texts, as with rows in memory
    assert trainer.train().global_step == 2


def test_labels_beside_texts_are_not_learned(tmp_path: Path, model_folder: Path) -> None:
    """As in TRL's guides, whose reviews have labels: `SFTTrainer` trains no classifier."""
    rows = [{"text": f"red {n}", "label": n % 2} for n in range(8)]
    trainer = SFTTrainer(str(model_folder), SFTConfig(str(tmp_path / "out"), max_steps=1), rows, peft_config=lora())
    trainer.train()
    assert trainer.run is not None and trainer.run.config.loss.type == "cross_entropy"


def test_a_second_adapter_is_refused(model_folder: Path) -> None:
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(str(model_folder)), lora())
    with pytest.raises(ConfigError, match="model: has an adapter already"):
        get_peft_model(model, lora())  # pyright: ignore[reportArgumentType]


def test_revisions_are_passed_on(model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr("lamina.compat.bases.load", lambda name, *others: asked.append(name))
    for name, revision in (("org/name", "v1"), ("org/name", "main"), ("org/name", None), (str(model_folder), "v1")):
        AutoModelForCausalLM.from_pretrained(name, revision=revision)
    assert asked == ["org/name@v1", "org/name", "org/name", str(model_folder)]


def test_arguments_of_older_versions(tmp_path: Path, model_folder: Path) -> None:
    args = SFTConfig(output_dir=str(tmp_path / "out"), max_steps=2)
    texts = [{"body": f"{row['prompt']} {row['completion']}"} for row in ROWS]
    trainer = SFTTrainer(
        str(model_folder),
        args,
        texts,
        peft_config=lora(),
        tokenizer=object(),
        dataset_text_field="body",
        max_seq_length=32,
        packing=True,
    )
    data = trainer.config.data
    assert (data.columns, data.max_length, data.packing) == ({"text": "body"}, 32, True)


def test_transformers_own_arguments_and_peft_s_own_configuration(tmp_path: Path, model_folder: Path) -> None:
    import peft
    from transformers import TrainingArguments

    args = TrainingArguments(output_dir=str(tmp_path / "out"), learning_rate=3e-4, max_steps=2, warmup_steps=1)
    config = peft.LoraConfig(r=2, lora_alpha=4, target_modules="all-linear", task_type="CAUSAL_LM", use_rslora=True)
    trainer = SFTTrainer(str(model_folder), args, ROWS, peft_config=config)
    assert (trainer.config.train.learning_rate, trainer.config.train.warmup_steps) == (3e-4, 1)
    method: Any = trainer.config.method
    assert (method.r, method.lora_alpha, method.use_rslora, method.target_modules) == (2, 4, True, "all-linear")


def test_targets_are_peft_s_unless_given(tmp_path: Path, model_folder: Path) -> None:
    args = SFTConfig(output_dir=str(tmp_path / "out"), **SHORT)
    trainer = SFTTrainer(str(model_folder), args, ROWS, peft_config=lora(target_modules=None))
    method: Any = trainer.config.method
    assert set(method.target_modules) == {"q_proj", "v_proj"}


def test_dpo(tmp_path: Path, model_folder: Path) -> None:
    pairs = [{"prompt": row["prompt"], "chosen": row["completion"], "rejected": "no"} for row in ROWS]
    args = DPOConfig(output_dir=str(tmp_path / "out"), beta=0.2, loss_type=["ipo"], **SHORT)
    trainer = DPOTrainer(str(model_folder), None, args, train_dataset=pairs, peft_config=lora())
    loss: Any = trainer.config.loss
    assert (loss.type, loss.beta, loss.loss_type) == ("dpo", 0.2, ["ipo"])
    assert trainer.config.train.learning_rate == 1e-6
    assert trainer.train().global_step == 2


def test_dft(tmp_path: Path, model_folder: Path) -> None:
    args = SFTConfig(output_dir=str(tmp_path / "out"), loss_type="dft", **SHORT)
    trainer = SFTTrainer(str(model_folder), args, ROWS, peft_config=lora())
    assert trainer.config.loss.type == "dft"
    assert trainer.train().global_step == 2


def test_what_has_no_counterpart_is_refused(tmp_path: Path, model_folder: Path) -> None:
    args = SFTConfig(output_dir=str(tmp_path / "out"), neftune_noise_alpha=5, label_smoothing_factor=0.1)
    with pytest.raises(ConfigError) as caught:
        SFTTrainer(str(model_folder), args, ROWS, peft_config=lora())
    assert {problem.field for problem in caught.value.problems} == {"neftune_noise_alpha", "label_smoothing_factor"}
    with pytest.raises(TypeError, match=r"no setting 'learning_rat'.*'learning_rate'"):
        SFTConfig(learning_rat=1e-4)
    with pytest.raises(TypeError, match="no setting 'rank'"):
        LoraConfig(rank=8)
    with pytest.raises(ConfigError, match="ref_model"):
        DPOTrainer(str(model_folder), ref_model=object(), train_dataset=ROWS)


def test_differences_are_said(tmp_path: Path, model_folder: Path) -> None:
    args = SFTConfig(output_dir=str(tmp_path / "out"), report_to="comet_ml", optim="lion_8bit", **SHORT)
    with pytest.warns(LaminaWarning, match=r"(?s)(?=.*comet_ml)(?=.*optim: the nearest)"):
        SFTTrainer(str(model_folder), args, ROWS, peft_config=lora())
