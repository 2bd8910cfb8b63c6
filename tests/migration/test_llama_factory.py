"""LLaMA-Factory's YAML as a configuration of lamina, with its `dataset_info.json`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from lamina.chat import message
from lamina.config import load_config
from lamina.data.columns import ColumnMapping
from lamina.data.formats import messages
from lamina.errors import ConfigError
from lamina.migration import turns
from lamina.migration.draft import Translation
from lamina.migration.translate import translate

BASE: dict[str, Any] = {
    "model_name_or_path": "some/model",
    "stage": "sft",
    "do_train": True,
    "finetuning_type": "lora",
    "lora_rank": 8,
    "lora_target": "all",
    "dataset": "mine",
    "template": "llama3",
    "cutoff_len": 1024,
    "output_dir": "saves/x",
    "per_device_train_batch_size": 1,
    "gradient_accumulation_steps": 8,
    "learning_rate": 1e-4,
    "num_train_epochs": 3.0,
    "lr_scheduler_type": "cosine",
    "warmup_ratio": 0.1,
    "bf16": True,
}
INFO: dict[str, Any] = {
    "mine": {"file_name": "mine.json"},
    "chats": {
        "file_name": "chats.json",
        "formatting": "sharegpt",
        "columns": {"messages": "conversation", "system": "sys"},
    },
    "openai": {
        "file_name": "o.json",
        "formatting": "sharegpt",
        "columns": {"messages": "messages"},
        "tags": {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"},
    },
    "hub": {"hf_hub_url": "user/rows", "subset": "en", "split": "validation", "num_samples": 50},
    "pairs": {"file_name": "p.json", "ranking": True, "columns": {"prompt": "q", "chosen": "good", "rejected": "bad"}},
    "labels": {"file_name": "l.json", "formatting": "sharegpt", "columns": {"messages": "m", "kto_tag": "label"}},
    "pictures": {"file_name": "i.json", "formatting": "sharegpt", "columns": {"messages": "m", "images": "images"}},
    "text": {"file_name": "t.json", "columns": {"prompt": "body"}},
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder as LLaMA-Factory's: `data/dataset_info.json`, and configurations two levels deep."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "dataset_info.json").write_text(json.dumps(INFO), encoding="utf-8")
    (tmp_path / "examples" / "train_lora").mkdir(parents=True)
    return tmp_path


def translated(folder: Path, **changes: Any) -> Translation:
    """Translates the base with changes; a change to `...` removes a key."""
    values = {key: value for key, value in {**BASE, **changes}.items() if value is not ...}
    path = folder / "examples" / "train_lora" / "config.yaml"
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return translate(path)


def config_of(folder: Path, **changes: Any) -> Any:
    """The checked configuration that a translation gives."""
    translation = translated(folder, **changes)
    translation.check()
    return load_config(translation.values)


def test_a_whole_file(folder: Path) -> None:
    config = config_of(folder)
    assert Path(config.data.train) == (folder / "data" / "mine.json").resolve()
    assert (config.data.format, config.data.max_length, config.data.overlong) == ("alpaca", 1024, "cut")
    assert (config.method.r, config.method.lora_alpha) == (8, 16)  # alpha is twice the rank there
    assert config.data.eval is None
    assert config.data.packing is False


def test_data_sets_of_the_catalog(folder: Path) -> None:
    config = config_of(folder, dataset="chats, openai,hub,text")
    chats, openai, hub, text = config.data.sources
    assert (chats.format, chats.columns) == ("messages", {"messages": "conversation", "system": "sys"})
    assert (openai.format, openai.columns) == ("messages", None)
    assert (hub.path, hub.max_rows) == ("user/rows/en:validation", 50)
    assert (text.format, text.columns) == ("text", {"text": "body"})


@pytest.mark.parametrize("content", ['{"mine":', "\N{LATIN SMALL LETTER U WITH DIAERESIS}"])
def test_a_damaged_catalog_is_named(folder: Path, content: str) -> None:
    (folder / "data" / "dataset_info.json").write_text(content, encoding="latin-1")
    with pytest.raises(
        ConfigError, match=r"dataset_dir: .*data/dataset_info\.json cannot be read \(.+\)\. Fix: correct"
    ):
        translated(folder)


def test_preferences(folder: Path) -> None:
    config = config_of(folder, stage="dpo", dataset="pairs", pref_beta=0.2, pref_loss="sigmoid")
    assert (config.loss.type, config.loss.beta) == ("dpo", 0.2)
    assert config.data.columns == {"instruction": "q", "chosen": "good", "rejected": "bad"}
    assert config_of(folder, stage="dpo", dataset="pairs", pref_loss="orpo").loss.type == "orpo"
    config = config_of(folder, stage="dpo", dataset="pairs", pref_loss="simpo", pref_beta=2.0, simpo_gamma=0.5)
    assert (config.loss.type, config.loss.beta, config.loss.simpo_gamma) == ("simpo", 2.0, 1.0)
    mixed = config_of(folder, stage="dpo", dataset="pairs", pref_ftx=0.1).loss
    assert (mixed.loss_type, mixed.loss_weights) == (["sigmoid", "sft"], [1.0, 0.1])


def test_labels(folder: Path) -> None:
    config = config_of(folder, stage="kto", dataset="labels")
    assert (config.loss.type, config.data.format) == ("kto", "unpaired_preference")


@pytest.mark.parametrize("name", ["pictures", "nobody"])
def test_a_data_set_without_a_counterpart_is_named(folder: Path, name: str) -> None:
    (row,) = translated(folder, dataset=name).of("missing")
    assert (row.name, row.given) == ("dataset", name)


def test_without_a_catalog_the_name_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump({**BASE, "dataset_dir": "nowhere"}), encoding="utf-8")
    (row,) = translate(path).of("missing")
    assert "dataset_info.json" in row.note


@pytest.mark.parametrize(
    ("changes", "field", "wanted"),
    [
        ({"quantization_bit": 4}, "quantization.bits", 4),
        ({"val_size": 0.1}, "data.eval", 0.1),
        ({"val_size": 200}, "data.eval", 200),
        ({"pissa_init": True}, "method.init_lora_weights", "pissa_niter_16"),
        ({"use_rslora": True}, "method.use_rslora", True),
        ({"additional_target": "embed_tokens,lm_head"}, "method.modules_to_save", ["embed_tokens", "lm_head"]),
        ({"lora_target": "q_proj,v_proj"}, "method.target_modules", ["q_proj", "v_proj"]),
        ({"template": "qwen3_nothink"}, "data.enable_thinking", False),
        ({"template": "llama3"}, "data.chat_template", "llama3"),
        ({"template": "qwen"}, "data.chat_template", None),
        ({"train_on_prompt": True}, "data.train_on", "all"),
        ({"mask_history": True}, "data.train_on", "completions"),
        ({"neat_packing": True}, "data.packing", True),
        ({"finetuning_type": "full", "use_adam_mini": True}, "train.optim", "adamw_torch"),
        ({"finetuning_type": "full", "use_galore": True, "galore_layerwise": True, "gradient_accumulation_steps": 1},
         "train.optim", "galore_adamw_layerwise"),
        ({"finetuning_type": "full", "use_galore": True}, "train.galore.rank", 16),
        ({"finetuning_type": "full", "use_galore": True}, "train.galore.scale", 2.0),
        ({"finetuning_type": "full", "use_galore": True, "galore_rank": 64}, "train.galore.rank", 64),
        ({"finetuning_type": "full", "use_galore": True, "optim": "adamw_8bit"}, "train.optim", "galore_adamw_8bit"),
        ({"finetuning_type": "full", "use_apollo": True, "apollo_target": "all"}, "train.optim", "apollo_adamw"),
        ({"finetuning_type": "full", "use_apollo": True, "apollo_layerwise": True, "gradient_accumulation_steps": 1},
         "train.optim", "apollo_adamw_layerwise"),
        ({"finetuning_type": "full", "use_apollo": True}, "train.apollo.rank", 16),
        ({"finetuning_type": "full", "use_apollo": True}, "train.apollo.scale", 32.0),
        ({"finetuning_type": "full", "use_apollo": True, "apollo_scale": 1}, "train.apollo.scale", 1.0),
        ({"finetuning_type": "full", "use_apollo": True, "apollo_scale_type": "tensor"},
         "train.apollo.scale_type", "tensor"),
        ({"finetuning_type": "full", "use_badam": True, "badam_mode": "layer"}, "train.optim", "badam"),
        ({"finetuning_type": "full", "use_badam": True, "optim": "adamw_torch"}, "train.optim", "badam"),
        ({"finetuning_type": "full", "use_muon": True, "optim": "adamw_torch"}, "train.optim", "muon"),
        ({"finetuning_type": "full", "use_badam": True, "badam_switch_interval": 20},
         "train.badam.switch_interval", 20),
        ({"finetuning_type": "full", "use_badam": True, "badam_switch_interval": -1, "badam_switch_mode": "random"},
         "train.badam.switch_mode", "fixed"),
        ({"finetuning_type": "full", "use_badam": True, "badam_start_block": 3}, "train.badam.start_block", 3),
        ({"finetuning_type": "full", "badam_switch_interval": 20}, "train.badam", None),
        ({"finetuning_type": "full", "apollo_rank": 4}, "train.apollo", None),
        ({"use_dft_loss": True, "eaft_alpha": 2.0}, "loss.type", "dft"),
        ({"use_dft_loss": False, "eaft_alpha": 2.0}, "loss.type", "cross_entropy"),
        ({"use_eaft_loss": True}, "loss.eaft_k", 20),
        ({"use_eaft_loss": True, "eaft_alpha": 2}, "loss.eaft_alpha", 2.0),
        ({"use_asft_loss": True}, "loss.asft_alpha", 0.1),
        ({"use_asft_loss": True, "asft_alpha": 0.05}, "loss.asft_alpha", 0.05),
        ({"use_asft_loss": True, "use_dft_loss": True}, "loss.type", "dft"),
    ],
)  # fmt: skip
def test_settings(folder: Path, changes: dict[str, Any], field: str, wanted: Any) -> None:
    value = config_of(folder, **changes)
    for part in field.split("."):
        value = getattr(value, part)
    assert value == wanted


def test_badam_on_parts_of_matrices_has_no_counterpart(folder: Path) -> None:
    changes = {"finetuning_type": "full", "use_badam": True, "badam_mode": "ratio", "badam_update_ratio": 0.1}
    assert [row.name for row in translated(folder, **changes).of("missing")] == ["badam_mode"]


def test_apollo_on_some_matrices_has_no_counterpart(folder: Path) -> None:
    changes = {"finetuning_type": "full", "use_apollo": True, "apollo_target": "q_proj", "apollo_proj_type": "left"}
    assert {row.name for row in translated(folder, **changes).of("missing")} == {"apollo_target", "apollo_proj_type"}


def test_the_newer_form(folder: Path) -> None:
    catalog = {"mine": {"path": "data/mine.json", "source": "local", "converter": "alpaca", "size": 5}}
    (folder / "data" / "demo.yaml").write_text(yaml.safe_dump(catalog), encoding="utf-8")
    path = folder / "examples" / "v1.yaml"
    values = {
        "model": "some/model",
        "model_class": "llm",
        "peft_config": {"name": "lora", "r": 4, "lora_alpha": 8, "target_modules": "all"},
        "quant_config": {"name": "bnb", "quantization_bit": 4},
        "train_dataset": "data/demo.yaml",
        "micro_batch_size": 2,
        "cutoff_len": 256,
        "learning_rate": 1e-4,
        "max_steps": 10,
    }
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    translation = translate(path)
    translation.check()
    config = load_config(translation.values)
    assert (config.method.r, config.quantization.bits, config.train.max_steps) == (4, 4, 10)
    assert Path(config.data.train) == (folder / "data" / "mine.json").resolve()
    assert config.data.max_rows == 5


TURNS = [{"speaker": "customer", "text": "Why?"}, {"speaker": "agent", "text": "So."}, {"speaker": "user", "text": "?"}]


@pytest.mark.parametrize(
    ("tags", "given", "roles"),
    [
        (
            {"role_tag": "speaker", "content_tag": "text", "user_tag": "customer", "assistant_tag": "agent"},
            TURNS,
            ["user", "assistant", "user"],
        ),
        (
            {"user_tag": "model", "assistant_tag": "user"},
            [{"from": "model", "value": "Q"}, {"from": "user", "value": "A"}],
            ["user", "assistant"],
        ),
        (
            {"role_tag": "role", "content_tag": "content", "user_tag": "me", "observation_tag": "result"},
            [{"role": "me", "content": "Q"}, {"role": "assistant", "content": "A"}, {"role": "result", "content": "R"}],
            ["user", "assistant", "tool"],
        ),
    ],
)
def test_tags_rename_turns_and_roles(folder: Path, tags: dict[str, str], given: Any, roles: list[str]) -> None:
    entry = {"file_name": "t.json", "formatting": "sharegpt", "columns": {"messages": "m", "system": "s"}, "tags": tags}
    (folder / "data" / "dataset_info.json").write_text(json.dumps({"mine": entry}), encoding="utf-8")
    config = config_of(folder)
    assert config.data.format == "messages"
    row = ColumnMapping(config.data.columns).apply({"m": given, "s": ""})
    read = messages.parse(row, 1).messages
    assert [turn.role for turn in read] == roles
    assert [turn.content for turn in read] == [list(turn.values())[1] for turn in given]


@pytest.mark.parametrize("more", [{"ranking": True}, {"columns": {"messages": "my turns"}}])
def test_tags_without_a_counterpart_are_listed(folder: Path, more: dict[str, Any]) -> None:
    entry = {"file_name": "t.json", "formatting": "sharegpt", "tags": {"user_tag": "customer"}, **more}
    (folder / "data" / "dataset_info.json").write_text(json.dumps({"mine": entry}), encoding="utf-8")
    (row,) = translated(folder).of("missing")
    assert row.name == "dataset"


def test_new_special_tokens(folder: Path) -> None:
    assert config_of(folder, resize_vocab=True, new_special_tokens="<a>,<b>").data.special_tokens == ["<a>", "<b>"]


def test_training_starts_from_one_adapter(folder: Path) -> None:
    assert translated(folder, adapter_name_or_path="runs/a").values["method"]["from"] == "runs/a"
    (row,) = translated(folder, adapter_name_or_path="runs/a,runs/b").of("missing")
    assert row.name == "adapter_name_or_path" and "lamina merge" in row.note


def test_roles_are_those_of_conversations() -> None:
    assert (turns.ROLES, turns.ROLE_ALIASES) == (message.ROLES, message.ROLE_ALIASES)
