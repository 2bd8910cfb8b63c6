"""TRL's configurations: every setting can be read back, and be changed until the trainer is made."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainingArguments

from lamina.compat.trl import DPOConfig, SFTConfig, SFTTrainer
from lamina.errors import ConfigError
from lamina.migration.trl import DEFAULTS, LEARNING_RATES

KINDS = [SFTConfig, DPOConfig]
# Another object there, or a flag that transformers works out from the machine.
_OF_THE_MACHINE = ("report_to", "disable_tqdm", "accelerator_config", "debug", "dataloader_pin_memory", "use_cpu")
_WORKED_OUT = ("loss_type",)


@pytest.mark.parametrize("kind", KINDS)
def test_every_name_can_be_read(kind: type[SFTConfig]) -> None:
    config = kind()
    for name in kind.table:
        getattr(config, name)
    assert set(config.to_dict()) == set(kind.table) <= set(dir(config))
    usual = TrainingArguments(output_dir="trainer_output", use_cpu=True)
    of_trl = {"bf16", "logging_steps", "gradient_checkpointing", "activation_checkpointing", "learning_rate"}
    names = {each.name for each in dataclasses.fields(TrainingArguments)} & set(kind.table) - of_trl
    names -= {*_OF_THE_MACHINE}
    assert len(names) > 70
    assert {name: getattr(config, name) for name in names} == {name: getattr(usual, name) for name in names}


@pytest.mark.parametrize("kind", KINDS)
def test_defaults_are_those_that_are_translated(kind: type[SFTConfig]) -> None:
    config = kind()
    assert config.learning_rate == LEARNING_RATES[kind.loss]
    for key in ("train.per_device_train_batch_size", "train.lr_scheduler_type", "data.max_length", "seed"):
        assert getattr(config, key.rpartition(".")[2]) == DEFAULTS[key]
    assert SFTConfig().packing is DEFAULTS["data.packing"] is False
    assert config.output_dir == "trainer_output"


@pytest.mark.parametrize(("kind", "name"), [(SFTConfig, "SFTConfig"), (DPOConfig, "DPOConfig")])
def test_defaults_are_trl_s(kind: type[SFTConfig], name: str) -> None:
    trl: Any = pytest.importorskip("trl")
    theirs, own = getattr(trl, name)(output_dir="trainer_output", use_cpu=True), kind()
    names = [each.name for each in dataclasses.fields(theirs) if each.name in kind.table]
    compared = [each for each in names if each not in (*_OF_THE_MACHINE, *_WORKED_OUT)]
    assert {each: getattr(own, each) for each in compared} == {each: getattr(theirs, each) for each in compared}


def test_what_is_given_is_read_back() -> None:
    config = SFTConfig("out", learning_rate=1e-4, max_seq_length=256, evaluation_strategy="steps")
    assert (config.output_dir, config.learning_rate) == ("out", 1e-4)
    assert config.max_length == config.max_seq_length == 256  # the older name of the same setting
    assert config.eval_strategy == "steps"
    assert config.train_batch_size == config.per_device_train_batch_size == 8
    assert repr(config).startswith("SFTConfig(output_dir='out', learning_rate=0.0001")
    for again in (copy.deepcopy(config), pickle.loads(pickle.dumps(config))):
        assert (again.learning_rate, again.weight_decay) == (1e-4, 0.0)
    with pytest.raises(AttributeError, match=r"SFTConfig has no setting 'learnin_rate'.*'learning_rate'"):
        _ = config.learnin_rate
    assert not hasattr(config, "anything")


def test_a_default_that_is_changed_in_place_changes_no_other_configuration() -> None:
    DPOConfig().loss_type.append("sft")
    assert DPOConfig().loss_type == ["sigmoid"]


def test_settings_may_be_changed_afterwards(tmp_path: Path, model_folder: Path) -> None:
    config = SFTConfig(str(tmp_path / "out"), max_steps=3)
    config.max_steps, config.learning_rate = 2, 1e-3
    rows = [{"prompt": "a", "completion": "b"}] * 4
    trainer = SFTTrainer(str(model_folder), config, rows)
    assert (trainer.config.train.max_steps, trainer.config.train.learning_rate) == (2, 1e-3)
    with pytest.raises(AttributeError, match="no setting 'max_step'"):
        config.max_step = 2
    config.neftune_noise_alpha = 5
    with pytest.raises(ConfigError, match="neftune_noise_alpha"):
        SFTTrainer(str(model_folder), config, rows)


def test_a_setting_that_is_changed_has_one_value(tmp_path: Path, model_folder: Path) -> None:
    config = SFTConfig(str(tmp_path / "out"), max_seq_length=64, max_steps=1)
    config.max_length = 32
    assert config.max_length == config.max_seq_length == 32
    trainer = SFTTrainer(str(model_folder), config, [{"prompt": "red", "completion": "blue"}])
    assert trainer.config.data.max_length == 32
