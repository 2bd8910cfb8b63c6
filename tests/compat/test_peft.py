"""`PeftModel` is a module as peft's is: what guides call on it works, or is refused with the way."""

from __future__ import annotations

import copy
import gc
import shutil
import weakref
from pathlib import Path
from typing import Any

import datasets
import peft
import pytest
import torch
from transformers import AutoModelForCausalLM as TheirLoader
from transformers import Trainer, TrainingArguments

from lamina.compat.peft import (
    AutoPeftModelForCausalLM,
    LoraConfig,
    PeftConfig,
    PeftModel,
    TaskType,
    get_peft_model,
    get_peft_model_state_dict,
)
from lamina.compat.transformers import AutoModelForCausalLM
from lamina.compat.trl import SFTConfig, SFTTrainer
from lamina.errors import ConfigError, LaminaWarning

ROWS = [{"prompt": f"red {n}", "completion": "blue"} for n in range(8)]
IDS = torch.tensor([[1, 2, 3, 4]])


def lora(**changes: Any) -> LoraConfig:
    return LoraConfig(**{"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"], **changes})


@pytest.fixture
def model(model_folder: Path) -> PeftModel:
    return get_peft_model(AutoModelForCausalLM.from_pretrained(str(model_folder), dtype="float32"), lora())


@pytest.fixture
def saved(model: PeftModel, tmp_path: Path) -> Path:
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.1)
    model.save_pretrained(tmp_path / "adapter", safe_serialization=True)
    return tmp_path / "adapter"


def test_it_is_a_module(model: PeftModel, capsys: pytest.CaptureFixture[str]) -> None:
    assert isinstance(model, torch.nn.Module)
    trained = {name: each for name, each in model.named_parameters() if each.requires_grad}
    assert trained and all("q_proj" in name or "v_proj" in name for name in trained)
    counts = model.get_nb_trainable_parameters()
    assert counts == (sum(each.numel() for each in trained.values()), sum(each.numel() for each in model.parameters()))
    model.print_trainable_parameters()
    assert capsys.readouterr().out.startswith(f"trainable params: {counts[0]:,} || all params: {counts[1]:,} ||")
    assert set(trained) <= set(model.state_dict())


def test_modes_reach_the_layers(model_folder: Path) -> None:
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(str(model_folder)), lora(lora_dropout=0.5))
    assert model.eval() is model
    assert not any(module.training for module in model.modules())
    assert torch.equal(model(IDS).logits, model(IDS).logits)
    assert model.train() is model
    assert model.base_model.training
    assert model.to("cpu") is model


def test_what_is_the_base_s(model: PeftModel) -> None:
    assert model.get_base_model() is model.base_model
    assert model.config is model.base_model.config
    assert (model.device, model.dtype) == (torch.device("cpu"), torch.float32)
    model.config.use_cache = False
    assert model.base_model.config.use_cache is False
    changed = copy.deepcopy(model.generation_config)
    changed.max_new_tokens = 2
    model.generation_config = changed
    assert model.base_model.generation_config is changed
    assert model.generate(input_ids=IDS, do_sample=False).shape[1] <= 6
    assert model.get_input_embeddings() is model.base_model.get_input_embeddings()
    with pytest.raises(AttributeError, match="anything"):
        _ = model.anything


def test_configurations(model: PeftModel, model_folder: Path, saved: Path) -> None:
    config = model.peft_config["default"]
    assert (config.r, config.lora_alpha, config.bias, config.use_dora) == (4, 8, "none", False)
    assert (config.base_model_name_or_path, config.peft_type) == (str(model_folder), "LORA")
    assert (model.active_adapter, model.active_adapters, model.peft_type) == ("default", ["default"], "LORA")
    assert model.active_peft_config is config
    read = PeftConfig.from_pretrained(saved)
    assert isinstance(read, LoraConfig)
    assert (read.r, set(read.target_modules), read.base_model_name_or_path) == (
        4,
        {"q_proj", "v_proj"},
        str(model_folder),
    )
    theirs = peft.PeftConfig.from_pretrained(str(saved))
    given = {name: value for name, value in vars(theirs).items() if name in LoraConfig.defaults}
    assert given == {name: getattr(read, name) for name in given}
    with pytest.raises(AttributeError, match=r"LoraConfig has no setting 'lora_alph'.*'lora_alpha'"):
        _ = config.lora_alph


def test_defaults_are_peft_s() -> None:
    theirs, own = peft.LoraConfig(), LoraConfig()
    names = set(vars(theirs)) - {"peft_type", "runtime_config", "auto_mapping", "peft_version", "_custom_modules"}
    assert {name: getattr(own, name) for name in names} == {name: getattr(theirs, name) for name in names}
    assert TaskType.CAUSAL_LM == "CAUSAL_LM"


def test_targets_that_are_left_open_are_named_afterwards(model_folder: Path) -> None:
    for config in (lora(target_modules=None), peft.LoraConfig()):
        model = get_peft_model(AutoModelForCausalLM.from_pretrained(str(model_folder)), config, adapter_name="mine")
        assert set(model.peft_config["mine"].target_modules) == {"q_proj", "v_proj"}
        assert config.target_modules is None


def test_state_dict_is_peft_s(model: PeftModel, saved: Path, model_folder: Path) -> None:
    theirs = peft.PeftModel.from_pretrained(TheirLoader.from_pretrained(model_folder, dtype=torch.float32), saved)
    expected = peft.get_peft_model_state_dict(theirs)
    found = get_peft_model_state_dict(model)
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor)


def test_loaded_adapters_are_frozen_unless_they_are_trainable(saved: Path, model_folder: Path) -> None:
    base = AutoModelForCausalLM.from_pretrained(str(model_folder))
    for trainable in (False, True):
        model = PeftModel.from_pretrained(base, saved, is_trainable=trainable)
        trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
        assert (trained > 0) is trainable
        assert model.get_nb_trainable_parameters()[0] == trained
        assert model.peft_config["default"].inference_mode is not trainable


def test_a_loaded_adapter_is_trained_further(saved: Path, tmp_path: Path) -> None:
    model = AutoPeftModelForCausalLM.from_pretrained(saved, is_trainable=True, torch_dtype=torch.float32)
    before = {name: tensor.clone() for name, tensor in get_peft_model_state_dict(model).items()}
    args = SFTConfig(str(tmp_path / "out"), max_steps=1, max_length=64, learning_rate=1e-5)
    trainer = SFTTrainer(model, args, ROWS)
    assert trainer.translation.values["method"] == {"from": str(saved)}
    trainer.train()
    after = get_peft_model_state_dict(model)
    for name, tensor in before.items():
        assert 0 < (after[name] - tensor).abs().max() < 1e-3, name


def _change(model: PeftModel) -> None:
    """Does what a training loop of one's own does."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data.normal_(std=0.2)


def test_what_a_loop_of_one_s_own_trained_is_saved_and_merged(saved: Path, model_folder: Path, tmp_path: Path) -> None:
    def base() -> Any:
        return AutoModelForCausalLM.from_pretrained(str(model_folder), dtype="float32")

    model = PeftModel.from_pretrained(base(), saved, is_trainable=True)
    _change(model)
    expected = model(IDS).logits.float()
    merged = model.merge_and_unload()
    torch.testing.assert_close(merged(IDS).logits.float(), expected, atol=1e-3, rtol=1e-3)
    with pytest.raises(ConfigError, match=r"model: its adapter is no longer.*Fix: .*model\.save_pretrained\(FOLDER\)"):
        SFTTrainer(model, SFTConfig(str(tmp_path / "out"), max_steps=1), ROWS)
    model.save_pretrained(tmp_path / "new")
    read = PeftModel.from_pretrained(base(), tmp_path / "new")
    assert torch.equal(read(IDS).logits.float(), expected)
    trainer = SFTTrainer(model, SFTConfig(str(tmp_path / "out"), max_steps=1), ROWS)
    assert trainer.translation.values["method"] == {"from": str(tmp_path / "new")}
    shutil.rmtree(tmp_path / "new")  # as trainers delete checkpoints
    model.save_pretrained(tmp_path / "newer")
    assert PeftModel.from_pretrained(base(), tmp_path / "newer")(IDS).logits.float().equal(expected)


def test_a_loaded_adapter_is_saved_where_it_is(saved: Path, model_folder: Path, tmp_path: Path) -> None:
    model = PeftModel.from_pretrained(str(model_folder), saved, is_trainable=True)
    before = {path.name: path.read_bytes() for path in saved.iterdir()}
    model.save_pretrained(saved)
    assert {path.name: path.read_bytes() for path in saved.iterdir()} == before
    _change(model)
    model.save_pretrained(saved)
    assert PeftModel.from_pretrained(str(model_folder), saved)(IDS).logits.equal(model(IDS).logits)


def test_a_run_s_adapter_is_not_overwritten_by_another(model: PeftModel, tmp_path: Path) -> None:
    trainer = SFTTrainer(model, SFTConfig(str(tmp_path / "out"), max_steps=1, max_length=64), ROWS)
    trainer.train()
    assert trainer.run is not None
    _change(model)
    with pytest.raises(ConfigError, match=r"save_directory: .* has an adapter whose lock \(lamina.json\)"):
        model.save_pretrained(trainer.run.adapter)
    assert PeftModel.from_pretrained(str(model.origin.name), trainer.run.path).is_as_read()


def test_trainer_of_transformers(model: PeftModel, tmp_path: Path) -> None:
    rows = [{"input_ids": [1, 2, 3, 4], "labels": [1, 2, 3, 4], "attention_mask": [1, 1, 1, 1]}] * 4
    before = {name: tensor.clone() for name, tensor in get_peft_model_state_dict(model).items()}
    args = TrainingArguments(
        str(tmp_path / "out"), max_steps=2, save_strategy="no", report_to="none", use_cpu=True, learning_rate=1e-2
    )
    Trainer(model=model, args=args, train_dataset=datasets.Dataset.from_list(rows)).train()
    assert any(not torch.equal(before[name], tensor) for name, tensor in get_peft_model_state_dict(model).items())


@pytest.mark.parametrize(
    ("name", "way"),
    [
        ("load_adapter", "lamina.Engine"),
        ("add_adapter", "a model has one adapter"),
        ("merge_adapter", r"merge_and_unload\(\)"),
        ("unload", r"disable_adapter\(\)"),
        ("push_to_hub", "hf upload"),
    ],
)
def test_what_has_no_counterpart_says_the_way(name: str, way: str, model: PeftModel) -> None:
    with pytest.raises(AttributeError, match=way):
        getattr(model, name)


def test_arguments_without_counterpart(model: PeftModel, saved: Path, tmp_path: Path) -> None:
    model.set_adapter("default")
    with pytest.raises(ConfigError, match=r"adapter_name: 'other' is not here.*load_beside"):
        model.set_adapter("other")
    with pytest.raises(ConfigError, match="safe_serialization"):
        model.save_pretrained(tmp_path / "x", safe_serialization=False)
    with pytest.raises(ConfigError, match=r"push_to_hub.*hf upload"):
        model.save_pretrained(tmp_path / "x", push_to_hub=True)
    assert not (tmp_path / "x").exists()
    with pytest.raises(ConfigError, match=r"load_in_4bit: True has no counterpart.*as it was when"):
        AutoPeftModelForCausalLM.from_pretrained(saved, load_in_4bit=True)
    with pytest.raises(ConfigError, match=r"revision: 'v1'.*--revision"):
        PeftModel.from_pretrained(str(saved), saved, revision="v1")


def test_merged_models_name_no_folder_that_is_gone(saved: Path, tmp_path: Path) -> None:
    merged = AutoPeftModelForCausalLM.from_pretrained(saved).merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")
    trainer = SFTTrainer(merged, SFTConfig(str(tmp_path / "out"), max_steps=1), ROWS, peft_config=lora())
    assert trainer.config.model == "in memory"


def test_maps_of_devices(model_folder: Path, saved: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    name = str(model_folder)
    model = AutoModelForCausalLM.from_pretrained(name, device_map={"": "cpu"})
    trainer = SFTTrainer(model, SFTConfig(str(tmp_path / "out"), max_steps=1), ROWS, peft_config=lora())
    assert (model.device.type, trainer.config.device) == ("cpu", "cpu")
    assert AutoPeftModelForCausalLM.from_pretrained(saved, device_map="cpu").device.type == "cpu"
    with pytest.raises(ConfigError, match="device: 'cuda:7' is not here"):
        AutoModelForCausalLM.from_pretrained(name, device_map=7)
    with pytest.raises(ConfigError, match=r"device_map: \{.*\} has no counterpart.*--nproc"):
        AutoModelForCausalLM.from_pretrained(name, device_map={"model.embed_tokens": 0, "model.layers": 1})
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    for spread in ("auto", "balanced"):
        with pytest.warns(LaminaWarning, match=f"device_map='{spread}': lamina places the base on one device.*--nproc"):
            AutoModelForCausalLM.from_pretrained(name, device_map=spread)


def test_models_that_are_spread_are_refused(model_folder: Path, tmp_path: Path) -> None:
    spread = {"model.embed_tokens": "cpu", "model.layers": "disk", "model.norm": "cpu", "lm_head": "cpu"}
    spread["model.rotary_emb"] = "cpu"
    model = TheirLoader.from_pretrained(model_folder, device_map=spread, offload_folder=str(tmp_path / "off"))
    with pytest.raises(ConfigError, match=r"model: is spread over cpu, disk by its device_map.*--nproc"):
        get_peft_model(model, lora())
    trainer = SFTTrainer(model, SFTConfig(str(tmp_path / "out"), max_steps=1), ROWS, peft_config=lora())
    with pytest.raises(ConfigError, match="is spread over cpu, disk"):
        trainer.train()


def test_a_base_in_memory_is_not_read_again(
    model: PeftModel, saved: Path, model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bases: list[Any] = [
        TheirLoader.from_pretrained(model_folder, dtype=torch.float32),
        AutoModelForCausalLM.from_pretrained(str(model_folder), dtype="float32"),
    ]
    monkeypatch.setattr("lamina.models.load.read_model", _refuse)
    for base in bases:
        bare = base(IDS).logits
        loaded = PeftModel.from_pretrained(base, saved)
        held: Any = loaded.base_model.get_input_embeddings()
        assert held.weight.data_ptr() == base.get_input_embeddings().weight.data_ptr()
        torch.testing.assert_close(loaded(IDS).logits, model(IDS).logits)
        assert base(IDS).logits.equal(bare)  # the given model has no adapter
        again = PeftModel.from_pretrained(loaded.get_base_model(), saved)
        torch.testing.assert_close(again(IDS).logits, model(IDS).logits)
    with torch.no_grad():
        bases[0].get_input_embeddings().weight.add_(1.0)
    with pytest.raises(ConfigError, match=rf"model: its weights are not those of {model_folder}.*save_pretrained"):
        PeftModel.from_pretrained(bases[0], saved)


def _refuse(*arguments: Any) -> None:
    raise AssertionError("the base is read again")


def test_a_quantized_base_in_memory_is_not_read_again(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = AutoModelForCausalLM.from_pretrained(str(model_folder), load_in_4bit=True)
    args = SFTConfig(str(tmp_path / "out"), max_steps=1, max_length=64)
    SFTTrainer(base, args, ROWS, peft_config=lora()).train()
    plain = AutoModelForCausalLM.from_pretrained(str(model_folder))
    assert PeftModel.from_pretrained(plain, tmp_path / "out").origin.quantization is not None  # as it was trained
    monkeypatch.setattr("lamina.models.quantized.load.load_packed", _refuse)
    loaded = PeftModel.from_pretrained(base, tmp_path / "out")
    again = PeftModel.from_pretrained(loaded.get_base_model(), tmp_path / "out")
    assert loaded(IDS).logits.equal(again(IDS).logits)


def test_a_base_that_a_script_lets_go_is_freed(model_folder: Path) -> None:
    base = AutoModelForCausalLM.from_pretrained(str(model_folder))
    held = weakref.ref(base)
    del base
    gc.collect()
    assert held() is None
