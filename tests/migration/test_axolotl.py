"""Axolotl's YAML as a configuration of lamina."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from lamina.config import load_config
from lamina.data.columns import ColumnMapping
from lamina.data.formats import alpaca
from lamina.errors import ConfigError
from lamina.migration.draft import Translation
from lamina.migration.translate import translate

BASE: dict[str, Any] = {
    "base_model": "some/model",
    "datasets": [{"path": "user/rows", "type": "chat_template"}],
    "adapter": "lora",
    "lora_r": 16,
    "lora_alpha": 32,
    "lora_target_linear": True,
    "sequence_len": 2048,
    "micro_batch_size": 2,
    "gradient_accumulation_steps": 4,
    "num_epochs": 2,
    "optimizer": "adamw_bnb_8bit",
    "lr_scheduler": "cosine",
    "learning_rate": 2e-4,
    "sample_packing": True,
    "val_set_size": 0.1,
}


def translated(tmp_path: Path, **changes: Any) -> Translation:
    """Translates the base with changes; a change to `...` removes a key."""
    values = {key: value for key, value in {**BASE, **changes}.items() if value is not ...}
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return translate(path)


def config_of(tmp_path: Path, **changes: Any) -> Any:
    """The checked configuration that a translation gives."""
    translation = translated(tmp_path, **changes)
    translation.check()
    return load_config(translation.values)


def test_a_whole_file(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    assert (config.model, config.data.train, config.data.max_length) == ("some/model", "user/rows", 2048)
    assert (config.method.type, config.method.r, config.method.lora_alpha) == ("lora", 16, 32)
    assert config.method.target_modules == "all-linear"
    assert (config.train.per_device_train_batch_size, config.train.gradient_accumulation_steps) == (2, 4)
    assert (config.train.optim, config.train.learning_rate) == ("adamw_8bit", 2e-4)
    assert (config.data.packing, config.data.eval, config.data.overlong) == (True, 0.1, "auto")
    assert config.train.load_best_model_at_end is False  # Axolotl keeps the last
    assert config.train.warmup_ratio == 0.03  # its default


@pytest.mark.parametrize(("adapter", "bits"), [("qlora", 4), ("lora", None)])
def test_quantization(tmp_path: Path, adapter: str, bits: int | None) -> None:
    config = config_of(tmp_path, adapter=adapter, load_in_4bit=adapter == "qlora")
    assert (config.quantization.bits if config.quantization else None) == bits


def test_eight_bits_keep_no_setting_of_four(tmp_path: Path) -> None:
    config = config_of(tmp_path, load_in_8bit=True, bnb_config_kwargs={"bnb_4bit_use_double_quant": True})
    assert (config.quantization.bits, config.quantization.double_quant) == (8, True)


def test_without_an_adapter_all_weights_are_trained(tmp_path: Path) -> None:
    config = config_of(tmp_path, adapter=..., lora_r=..., lora_alpha=..., lora_target_linear=...)
    assert config.method.type == "full"
    some = ["^lm_head.weight$", "model.layers.4[4-9]+.mlp"]
    assert config_of(tmp_path, adapter=None, unfrozen_parameters=some).method.parameters == some


def test_evaluations_per_epoch_are_shares_of_the_run(tmp_path: Path) -> None:
    config = config_of(tmp_path, evals_per_epoch=4, saves_per_epoch=1)
    assert config.train.eval_steps == 0.125  # 4 an epoch, 2 epochs
    assert config.train.save_steps == 0.5
    assert "save_steps" not in translated(tmp_path, saves_per_epoch=1, num_epochs=1).values["train"]


def test_names_of_newer_settings(tmp_path: Path) -> None:
    experts = ["mlp.experts.down_proj"]
    config = config_of(tmp_path, lora_target_parameters=experts, tokens=["<a>", "<b>"], revision_of_model="v1")
    assert (config.method.target_parameters, config.data.add_tokens) == (experts, ["<a>", "<b>"])
    assert config.model == "some/model@v1"


def test_several_evaluation_sets(tmp_path: Path) -> None:
    sets = [{"path": "a/b", "type": "chat_template", "split": "test"}, {"path": "rows/c.jsonl", "type": "completion"}]
    config = config_of(tmp_path, test_datasets=sets, val_set_size=0)
    assert [each if isinstance(each, str) else each.path for each in config.data.eval.values()] == [
        "a/b:test",
        "rows/c.jsonl",
    ]
    assert len(config_of(tmp_path, test_datasets=sets[:1]).data.eval) == 1


def test_without_evaluation_data_nothing_is_split_off(tmp_path: Path) -> None:
    config = config_of(tmp_path, val_set_size=0, evals_per_epoch=4, early_stopping_patience=3)
    assert config.data.eval is None
    assert config.train.early_stopping_patience is None


@pytest.mark.parametrize(
    ("split", "wanted"),
    [("train[:500]", {"max_rows": 500}), ("train[:20%]", {"weight": 0.2}), ("train[:100%]", {}), ("train", {})],
)
def test_slices(tmp_path: Path, split: str, wanted: dict[str, Any]) -> None:
    config = config_of(tmp_path, datasets=[{"path": "user/rows", "type": "chat_template", "split": split}])
    (source,) = config.data.sources
    assert source.path == "user/rows"
    assert (source.max_rows, source.weight) == (wanted.get("max_rows"), wanted.get("weight", 1.0))


def test_a_slice_from_the_middle_has_no_counterpart(tmp_path: Path) -> None:
    translation = translated(tmp_path, datasets=[{"path": "u/r", "type": "alpaca", "split": "train[10:20]"}])
    assert any(row.name == "datasets[0].split" for row in translation.of("missing"))


def test_alpaca_has_axolotl_s_text(tmp_path: Path) -> None:
    config = config_of(tmp_path, datasets=[{"path": "user/rows", "type": "alpaca"}])
    assert config.data.chat_template == "alpaca"
    mapping = ColumnMapping(config.data.columns)
    row = {"instruction": "Add.", "input": "1 2", "output": "3"}
    turns = alpaca.parse(mapping.apply(row), 1).messages
    assert [turn.content for turn in turns] == [
        "Below is an instruction that describes a task, paired with an input that provides further context. Write a "
        "response that appropriately completes the request.",
        "Add.\n\n### Input:\n1 2",
        "3",
    ]
    for bare in ({"instruction": "Hi.", "input": "", "output": "Ho."}, {"instruction": "Hi.", "output": "Ho."}):
        system, user, _ = alpaca.parse(mapping.apply(bare), 1).messages
        assert "paired with" not in system.content
        assert user.content == "Hi."


def test_mixed_formats_go_through_one_template(tmp_path: Path) -> None:
    listed = [
        {"path": "a/b", "type": "alpaca"},
        {"path": "c/d", "type": "chat_template", "field_messages": "conversations"},
        {"path": "e/f", "type": "completion", "field": "body"},
    ]
    config = config_of(tmp_path, datasets=listed)
    assert config.data.chat_template is None
    assert [source.format for source in config.data.sources] == ["alpaca", "messages", "text"]
    assert config.data.sources[1].columns == {"messages": "conversations"}
    assert config.data.sources[2].columns == {"text": "body"}


def test_a_format_of_the_user_s_own(tmp_path: Path) -> None:
    kind = {
        "field_instruction": "q",
        "field_input": "ctx",
        "field_output": "a",
        "format": "[INST] {instruction} {input} [/INST]",
        "no_input_format": "[INST] {instruction} [/INST]",
    }
    config = config_of(tmp_path, datasets=[{"path": "u/r", "type": kind}])
    assert config.data.chat is False
    mapping = ColumnMapping(config.data.columns)
    assert mapping.apply({"q": "Why?", "ctx": "C", "a": "So."})["prompt"] == "[INST] Why? C [/INST]"
    assert mapping.apply({"q": "Why?", "ctx": "", "a": "So."})["prompt"] == "[INST] Why? [/INST]"


def test_system_turns_are_dropped_on_request(tmp_path: Path) -> None:
    item = {
        "path": "u/r",
        "type": "chat_template",
        "field_messages": "turns",
        "drop_system_message": True,
        "message_property_mappings": {"role": "from", "content": "value"},
    }
    config = config_of(tmp_path, datasets=[item])
    from lamina.data.formats import messages

    row = {"turns": [{"from": "system", "value": "S"}, {"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}]}
    parsed = messages.parse(ColumnMapping(config.data.columns).apply(row), 1)
    assert [(turn.role, turn.content) for turn in parsed.messages] == [("user", "Q"), ("assistant", "A")]


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({"rl": "dpo", "rl_beta": 0.2}, "dpo"),
        ({"rl": "orpo", "orpo_alpha": 0.2}, "orpo"),
        ({"rl": "kto"}, "kto"),
        ({"reward_model": True}, "reward"),
    ],
)
def test_preferences(tmp_path: Path, changes: dict[str, Any], kind: str) -> None:
    data = [{"path": "u/r", "type": "chat_template.default", "field_chosen": "good", "field_rejected": "bad"}]
    config = config_of(tmp_path, datasets=data, **changes)
    assert config.loss.type == kind
    if kind in ("dpo", "orpo"):
        assert config.loss.beta == 0.2
        assert config.data.columns["chosen"] == "good"


def test_weights_of_tokens(tmp_path: Path) -> None:
    loss = config_of(tmp_path, use_eaft=True, eaft_alpha=0.5, eaft_k=10).loss
    assert (loss.type, loss.eaft_alpha, loss.eaft_k) == ("eaft", 0.5, 10)
    assert config_of(tmp_path, use_eaft=False, eaft_alpha=0.5).loss.type == "cross_entropy"


def test_what_has_no_counterpart_is_named(tmp_path: Path) -> None:
    translation = translated(tmp_path, relora=True, qat={"weight_dtype": "int4"}, made_up=1)
    assert {row.name for row in translation.of("missing")} == {"relora", "qat", "made_up"}
    with pytest.raises(ConfigError) as caught:
        translation.check()
    assert {problem.field for problem in caught.value.problems} == {"relora", "qat", "made_up"}
    load_config(translation.values)  # what --lenient trains with
    assert "# Not translated: relora" in translation.yaml()


def test_a_smallest_rate(tmp_path: Path) -> None:
    config = config_of(tmp_path, cosine_min_lr_ratio=0.1)
    assert config.train.lr_scheduler_type == "cosine_with_min_lr"
    assert config.train.lr_scheduler_kwargs == {"min_lr_rate": 0.1}


def test_every_setting_has_a_row(tmp_path: Path) -> None:
    translation = translated(tmp_path, bf16="auto", flash_attention=True, wandb_project="p", unknown_thing=3)
    named = {row.name.partition("[")[0].partition(".")[0] for row in translation.rows}
    assert {*BASE, "bf16", "flash_attention", "wandb_project", "unknown_thing"} <= named


@pytest.mark.parametrize("item", [None, 3, {"type": "alpaca"}, {"path": None}, ["user/rows"]])
def test_data_sets_that_are_none_are_named(tmp_path: Path, item: Any) -> None:
    translation = translated(tmp_path, datasets=[item, "user/rows"])
    (lost,) = translation.of("missing")
    assert (lost.name, lost.given) == ("datasets[0]", item)
    assert load_config(translation.values).data.train == "user/rows"


@pytest.mark.parametrize(
    ("more", "system", "prompt"),
    [
        ({}, "Be brief. ", "Be brief. [INST] Why? [/INST]"),
        ({"system_format": "<<{system}>>\n"}, "Be {{brief}}.", "<<Be {{brief}}.>>\n[INST] Why? [/INST]"),
        ({"system_format": ""}, "Be brief. ", "[INST] Why? [/INST]"),
        ({"field_input": "ctx", "no_input_format": "{instruction}:"}, "Be brief. ", "Be brief. Why?:"),
    ],
)
def test_a_system_prompt_of_the_user_s_own_comes_first(
    tmp_path: Path, more: dict[str, str], system: str, prompt: str
) -> None:
    fields = {"field_instruction": "q", "field_output": "a", "format": "[INST] {instruction} [/INST]"}
    config = config_of(tmp_path, datasets=[{"path": "u/r", "type": {"system_prompt": system, **fields, **more}}])
    assert ColumnMapping(config.data.columns).apply({"q": "Why?", "a": "So."}) == {
        "prompt": prompt,
        "completion": "So.",
    }


def test_a_system_prompt_beside_a_column_is_listed(tmp_path: Path) -> None:
    kind = {"system_prompt": "S", "field_system": "s", "field_instruction": "q", "field_output": "a"}
    translation = translated(tmp_path, datasets=[{"path": "u/r", "type": kind}])
    assert [row.kind for row in translation.rows if row.name == "datasets[0].type.system_prompt"] == ["own"]
    assert translation.values["data"]["columns"]["system"] == "s"


MARKED = {"path": "u/r", "type": "chat_template", "roles_to_train": [], "message_field_training": "train"}


def test_turns_that_are_marked(tmp_path: Path) -> None:
    config = config_of(tmp_path, datasets=[{**MARKED, "train_on_eos": "turn"}], train_on_inputs=True)
    assert config.data.train_on == "marked"
    both = {name: value for name, value in MARKED.items() if name != "roles_to_train"}
    assert config_of(tmp_path, datasets=[both]).data.train_on == "assistant"  # a mark is above the role there as here


@pytest.mark.parametrize(
    ("listed", "name"),
    [
        ([{"path": "u/r", "type": "chat_template", "roles_to_train": []}], "datasets[0].roles_to_train"),
        ([{**MARKED, "message_field_training": "learn"}], "datasets[0].message_field_training"),
        ([MARKED, {"path": "v/r", "type": "chat_template"}], "datasets.roles_to_train"),
    ],
)
def test_what_would_not_be_in_the_loss_as_asked_is_listed(tmp_path: Path, listed: list[Any], name: str) -> None:
    translation = translated(tmp_path, datasets=listed)
    assert [row.name for row in translation.of("missing")] == [name]
    with pytest.raises(ConfigError):
        translation.check()


@pytest.mark.parametrize(
    ("given", "columns"),
    [("u/r", None), ([{"path": "u/r"}], None), ([{"path": "u/r", "text_column": "Text"}], {"text": "Text"})],
)
def test_pretraining_is_on_text(tmp_path: Path, given: Any, columns: dict[str, str] | None) -> None:
    config = config_of(tmp_path, datasets=..., pretraining_dataset=given, max_steps=3)
    assert (config.data.train, config.data.format, config.data.columns) == ("u/r", "text", columns)


def test_roles_that_are_read_as_others_are_listed(tmp_path: Path) -> None:
    item = {"path": "u/r", "type": "chat_template", "roles": {"user": ["human"], "assistant": ["gpt", "model"]}}
    assert not translated(tmp_path, datasets=[item]).of("missing")
    for roles in ({"user": ["customer"]}, {"user": ["assistant"]}, {"critic": ["critic"]}):
        (row,) = translated(tmp_path, datasets=[{**item, "roles": roles}]).of("missing")
        assert row.name == f"datasets[0].roles.{next(iter(roles))}"
