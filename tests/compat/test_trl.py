"""What a script does around `SFTTrainer.train`: with the model that it gave, and with `trainer.model` afterwards."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM as TheirLoader

import lamina
from lamina.compat.peft import (
    AutoPeftModelForCausalLM,
    LoraConfig,
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
)
from lamina.compat.transformers import AutoModelForCausalLM
from lamina.compat.trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer
from lamina.errors import ConfigError, ModelError, RunError

ROWS = [{"prompt": f"red {n}", "completion": "blue"} for n in range(8)]
PAIRS = [{"prompt": f"red {n}", "chosen": "blue", "rejected": "green"} for n in range(8)]
IDS = torch.tensor([[1, 2, 3, 4]])
SHORT: dict[str, Any] = {"max_steps": 1, "max_length": 64, "learning_rate": 1e-5}


def lora() -> LoraConfig:
    return LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"])


def new_adapter(folder: Path) -> PeftModel:
    return get_peft_model(AutoModelForCausalLM.from_pretrained(str(folder), dtype="float32"), lora())


def refuse(*arguments: Any) -> None:
    raise AssertionError("the base is read again")


def change(model: PeftModel) -> None:
    """Gives the adapter other values, as `load_state_dict` or a loop of one's own does."""
    state = {name: torch.full_like(each, 0.05) for name, each in model.state_dict().items() if "lora_" in name}
    assert state
    model.load_state_dict(state, strict=False)


@pytest.mark.parametrize("again", [False, True], ids=["the same trainer", "another"])
@pytest.mark.parametrize("kind", [SFTTrainer, DPOTrainer])
def test_training_starts_from_values_that_were_changed(
    kind: type[SFTTrainer], again: bool, model_folder: Path, tmp_path: Path
) -> None:
    args = (DPOConfig if kind is DPOTrainer else SFTConfig)(str(tmp_path / "out"), **SHORT)
    rows = PAIRS if kind is DPOTrainer else ROWS
    model = new_adapter(model_folder)
    made_before = kind(model, args=args, train_dataset=rows)
    change(model)
    told = r"model: the values of its new adapter were changed.*Fix: save it .*model\.save_pretrained\(FOLDER\)"
    with pytest.raises(ConfigError, match=told):
        kind(model, args=args, train_dataset=rows)
    with pytest.raises(ConfigError, match=told):
        made_before.train()
    assert not (tmp_path / "out").exists()
    model.save_pretrained(tmp_path / "changed")
    trainer = kind(model, args=args, train_dataset=rows) if again else made_before
    trainer.train()
    for name, tensor in get_peft_model_state_dict(trainer.model).items():
        assert (tensor - 0.05).abs().max() < 1e-3, name


@pytest.mark.parametrize("content", ["{", "[]"])
def test_a_base_with_a_broken_config_is_named(content: str, model_folder: Path, tmp_path: Path) -> None:
    broken = shutil.copytree(model_folder, tmp_path / "broken")
    (broken / "config.json").write_text(content)
    trainer = SFTTrainer(str(broken), SFTConfig(str(tmp_path / "out"), **SHORT), ROWS, peft_config=lora())
    with pytest.raises(ModelError, match=r"broken: its config or tokenizer cannot be loaded"):
        trainer.train()
    with pytest.raises(ModelError, match=r"broken: its config or tokenizer cannot be loaded"):
        lamina.train(data=ROWS, model=broken, method="lora", output_dir=tmp_path / "other", progress=False)


def test_saving_a_new_adapter_changes_nothing_of_its_training(model_folder: Path, tmp_path: Path) -> None:
    model = new_adapter(model_folder)
    model.save_pretrained(tmp_path / "new")
    trainer = SFTTrainer(model, SFTConfig(str(tmp_path / "out"), **SHORT), ROWS)
    assert trainer.translation.values["method"]["type"] == "lora"


@pytest.mark.parametrize(
    "given",
    [
        pytest.param(str, id="name"),
        pytest.param(lambda folder: TheirLoader.from_pretrained(folder, dtype=torch.float32), id="transformers"),
        pytest.param(lambda folder: AutoModelForCausalLM.from_pretrained(str(folder), load_in_4bit=True), id="4 bits"),
        pytest.param(new_adapter, id="adapter"),
        pytest.param(None, id="full"),
    ],
)
def test_the_trained_model_is_used_as_peft_s(
    given: Callable[[Path], Any] | None, model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = str(model_folder) if given is None else given(model_folder)
    config = None if given is None or isinstance(model, PeftModel) else lora()
    trainer = SFTTrainer(model, SFTConfig(str(tmp_path / "out"), **SHORT), ROWS, peft_config=config)
    trainer.train()
    trained: PeftModel = trainer.model
    capsys.readouterr()
    trained.print_trainable_parameters()
    assert not capsys.readouterr().out.startswith("trainable params: 0 ")
    assert trained.generate(input_ids=IDS, do_sample=False, max_new_tokens=2).shape[1] <= 6

    own = trained.train()
    assert own is trained and trained.training
    weights = [each for each in trained.parameters() if each.requires_grad]
    trained(input_ids=IDS, labels=IDS).loss.backward()
    with torch.no_grad():
        for weight in weights:
            weight.add_(torch.ones_like(weight), alpha=0.01)
    expected = trained.eval()(IDS).logits
    with pytest.raises(ConfigError, match="save_directory"):  # the run's own adapter is what the run has trained
        trainer.save_model(tmp_path / "out" / "adapter")
    trainer.save_model(tmp_path / "saved")
    assert PeftModel.from_pretrained(str(model_folder), tmp_path / "saved")(IDS).logits.shape == expected.shape
    merged = trained.merge_and_unload()
    allowed = 2e-2 if merged.dtype == torch.float32 else 0.2  # merged weights are rounded to bfloat16, B A x is not
    torch.testing.assert_close(merged(IDS).logits.float(), expected.float(), atol=allowed, rtol=2e-2)

    with pytest.raises(
        RunError, match=r"this trainer has trained already, in .*out\. Fix: .*SFTTrainer\(trainer\.model"
    ):
        trainer.train()
    again = SFTTrainer(trained, SFTConfig(str(tmp_path / "again"), **SHORT), ROWS)
    again.train()
    assert again.model is trained


def test_a_model_in_memory_is_not_read_again_after_training(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model: Any = TheirLoader.from_pretrained(model_folder, dtype=torch.float32)
    with torch.no_grad():
        model.get_input_embeddings().weight.add_(0.1)  # so that the run keeps a copy
    before = model(IDS).logits
    monkeypatch.setattr("lamina.models.load.read_model", refuse)
    trainer = SFTTrainer(model, SFTConfig(str(tmp_path / "out"), **SHORT), ROWS, peft_config=lora())
    trainer.train()
    with trainer.model.disable_adapter():
        assert trainer.model(IDS).logits.equal(before)
    assert model(IDS).logits.equal(before)


def test_the_base_of_a_new_adapter_is_trained_on_as_it_is_in_memory(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base: Any = TheirLoader.from_pretrained(model_folder, dtype=torch.float32)
    with torch.no_grad():
        base.get_input_embeddings().weight.add_(0.1)
    before = base(IDS).logits
    model = get_peft_model(base, lora())
    with pytest.raises(ConfigError, match=rf"model: its weights are not those of {model_folder}.*Fix: model\.save_pre"):
        model.merge_and_unload()
    monkeypatch.setattr("lamina.models.load.read_model", refuse)
    args = SFTConfig(str(tmp_path / "out"), **{**SHORT, "max_steps": 3, "learning_rate": 1e-2})
    trainer = SFTTrainer(model, args, ROWS)
    trainer.train()
    monkeypatch.undo()
    with model.disable_adapter():
        assert model(IDS).logits.equal(before)
    trained = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "out")
    torch.testing.assert_close(trained(IDS).logits, model(IDS).logits)
    torch.testing.assert_close(model.merge_and_unload()(IDS).logits, model(IDS).logits, atol=1e-3, rtol=1e-3)


def test_a_base_that_has_an_adapter_already_gets_no_other_one(model_folder: Path, tmp_path: Path) -> None:
    base = AutoModelForCausalLM.from_pretrained(str(model_folder), dtype="float32")
    get_peft_model(base, lora())
    elsewhere = LoraConfig(r=4, target_modules=["up_proj"])
    trainer = SFTTrainer(base, SFTConfig(str(tmp_path / "out"), **SHORT), ROWS, peft_config=elsewhere)
    with pytest.raises(ConfigError, match=r"model: the LlamaForCausalLM has an adapter of lamina's on it already"):
        trainer.train()
    assert not (tmp_path / "out").exists()


def test_arguments_have_trl_s_order(model_folder: Path, tmp_path: Path) -> None:
    args = SFTConfig(str(tmp_path / "out"), **SHORT)
    model, others = str(model_folder), ROWS[:2]
    for given in ((None, ROWS, others), (None, ROWS, others, None), (ROWS, others)):  # the last is lamina's earlier one
        trainer = SFTTrainer(model, args, *given, peft_config=lora())
        assert trainer.translation.values["data"]["eval"] == "eval_dataset"
        assert trainer.translation.values["data"]["chat"] is False  # what the rows of `train_dataset` ask for
    assert SFTTrainer(model, args, None, ROWS, peft_config=lora()).config.data.eval is None
    DPOTrainer(model, None, DPOConfig(str(tmp_path / "out"), **SHORT), None, PAIRS, peft_config=lora())
    with pytest.raises(ConfigError, match="data_collator: has no counterpart"):
        SFTTrainer(model, args, lambda rows: rows, ROWS, peft_config=lora())


@pytest.mark.parametrize("kind", [SFTConfig, DPOConfig, LoraConfig])
def test_unknown_settings_are_one_error(kind: type[SFTConfig]) -> None:
    with pytest.raises(
        TypeError, match=r"2 problems(.|\n)*no setting 'targt_modules'(.|\n)*'zzz'.*Fix: remove it"
    ) as caught:
        kind(targt_modules=3, zzz=1)
    assert isinstance(caught.value, lamina.LaminaError)
    with pytest.raises(ConfigError, match=r"SFTConfig: has no setting 'max_step'.*Did you mean 'max_steps'"):
        SFTConfig("out", max_step=3)


@pytest.mark.parametrize("kind", [SFTTrainer, DPOTrainer])
def test_no_limit_of_the_length_cuts_nothing(kind: type[SFTTrainer], model_folder: Path, tmp_path: Path) -> None:
    args = kind.config_class(str(tmp_path / "out"), max_steps=1, max_length=None)
    with pytest.warns(lamina.LaminaWarning, match="max_length: nothing is cut"):
        trainer = kind(
            str(model_folder), args=args, train_dataset=ROWS if kind is SFTTrainer else PAIRS, peft_config=lora()
        )
    assert not {"max_length", "overlong"} & set(trainer.translation.values["data"])
