"""TRL's and alignment-handbook's YAML, and command lines, as a configuration of lamina."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from lamina.config import load_config
from lamina.errors import ConfigError
from lamina.migration.arguments import find_command
from lamina.migration.foreign import is_foreign
from lamina.migration.translate import translate
from lamina.migration.trl import DEFAULTS, LEARNING_RATES, LORA_DEFAULTS

RECIPE: dict[str, Any] = {
    "model_name_or_path": "some/model",
    "dataset_name": "user/rows",
    "learning_rate": 1e-4,
    "num_train_epochs": 1,
    "per_device_train_batch_size": 4,
    "use_peft": True,
    "lora_r": 8,
    "lora_target_modules": ["q_proj", "v_proj"],
    "load_in_4bit": True,
    "max_length": 512,
    "eval_strategy": "epoch",
    "gradient_checkpointing": True,
}


def config_of(path: Path, values: dict[str, Any]) -> Any:
    """The checked configuration that the translation of a file gives."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    translation = translate(path)
    translation.check()
    return load_config(translation.values)


def test_a_whole_file(tmp_path: Path) -> None:
    config = config_of(tmp_path / "sft.yaml", RECIPE)
    assert (config.data.train, config.data.eval) == ("user/rows", "user/rows:test")
    assert (config.method.r, config.method.target_modules) == (8, ["q_proj", "v_proj"])
    assert (config.quantization.bits, config.data.max_length) == (4, 512)
    assert (config.train.lr_scheduler_type, config.seed) == ("linear", 42)  # TRL's defaults
    assert config.data.packing is False


def test_defaults_are_those_of_trl() -> None:
    trl = pytest.importorskip("trl")
    try:
        sft, dpo, model = trl.SFTConfig, trl.DPOConfig, trl.ModelConfig
    except (AttributeError, ImportError):
        pytest.skip("trl has no SFTConfig")
    fields = {name: field.default for name, field in sft.__dataclass_fields__.items()}
    assert DEFAULTS["train.per_device_train_batch_size"] == fields["per_device_train_batch_size"]
    assert DEFAULTS["train.lr_scheduler_type"] == fields["lr_scheduler_type"]
    assert (DEFAULTS["data.max_length"], DEFAULTS["data.packing"]) == (fields["max_length"], fields["packing"])
    assert (DEFAULTS["seed"], fields["truncation_mode"]) == (fields["seed"], "keep_start")
    assert LEARNING_RATES["cross_entropy"] == fields["learning_rate"]
    assert LEARNING_RATES["dpo"] == dpo.__dataclass_fields__["learning_rate"].default
    lora = {name: field.default for name, field in model.__dataclass_fields__.items()}
    assert LORA_DEFAULTS["method.r"] == lora["lora_r"]
    assert LORA_DEFAULTS["method.lora_alpha"] == lora["lora_alpha"]
    assert LORA_DEFAULTS["method.lora_dropout"] == lora["lora_dropout"]


@pytest.mark.parametrize("loss", ["dpo", "orpo", "kto"])
def test_the_folder_says_what_is_trained(tmp_path: Path, loss: str) -> None:
    values = {**RECIPE, "beta": 0.05, "max_prompt_length": 128}
    config = config_of(tmp_path / "recipes" / "zephyr" / loss / "config_full.yaml", values)
    assert (config.loss.type, config.loss.beta) == (loss, 0.05)


def test_settings_say_what_is_trained(tmp_path: Path) -> None:
    assert config_of(tmp_path / "a.yaml", {**RECIPE, "beta": 0.1, "loss_type": "ipo"}).loss.loss_type == ["ipo"]
    assert config_of(tmp_path / "b.yaml", {**RECIPE, "desirable_weight": 1.5}).loss.type == "kto"
    for name, wanted in (("nll", "cross_entropy"), ("chunked_nll", "cross_entropy"), ("dft", "dft")):
        assert config_of(tmp_path / "c.yaml", {**RECIPE, "loss_type": name}).loss.type == wanted


def test_a_mixture(tmp_path: Path) -> None:
    mixture = {
        "datasets": [
            {"id": "a/b", "config": "c", "split": "train_sft", "weight": 0.5},
            {"id": "d/e", "split": "train"},
        ],
        "test_split_size": 500,
        "seed": 0,
    }
    values = {key: value for key, value in RECIPE.items() if key != "dataset_name"}
    config = config_of(tmp_path / "sft.yaml", {**values, "dataset_mixture": mixture})
    assert [(source.path, source.weight) for source in config.data.sources] == [("a/b/c:train_sft", 0.5), ("d/e", 1.0)]
    assert config.data.eval == 500


def test_rows_with_messages_are_trained_whole_as_in_trl(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"messages": [{"role": "user", "content": "a"}]}) + "\n", encoding="utf-8")
    local = {**RECIPE, "dataset_name": str(rows), "eval_strategy": "no"}
    assert config_of(tmp_path / "a.yaml", local).data.train_on == "all"
    assert config_of(tmp_path / "b.yaml", {**local, "assistant_only_loss": True}).data.train_on == "assistant"
    rows.write_text(json.dumps({"prompt": "a", "completion": "b"}) + "\n", encoding="utf-8")
    config = config_of(tmp_path / "c.yaml", local)
    assert (config.data.train_on, config.data.chat) == ("assistant", False)
    template = {"chat_template": "{{ messages[0]['content'] }}"}
    assert config_of(tmp_path / "d.yaml", {**local, **template}).data.chat_template is None


def test_a_template_as_text(tmp_path: Path) -> None:
    text = "{% for message in messages %}{{ message['content'] }}{{ eos_token }}{% endfor %}"
    assert config_of(tmp_path / "sft.yaml", {**RECIPE, "chat_template": text}).data.chat_template == text


def test_without_peft_all_weights_are_trained(tmp_path: Path) -> None:
    values = {key: value for key, value in RECIPE.items() if not key.startswith(("use_", "lora_", "load_"))}
    assert config_of(tmp_path / "sft.yaml", values).method.type == "full"


def test_a_schedule_with_a_smallest_rate(tmp_path: Path) -> None:
    values = {**RECIPE, "lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr_rate": 0.1}}
    assert config_of(tmp_path / "sft.yaml", values).train.lr_scheduler_kwargs == {"min_lr_rate": 0.1}


def test_constant_has_no_warmup(tmp_path: Path) -> None:
    values = {**RECIPE, "lr_scheduler_type": "constant", "warmup_ratio": 0.1}
    assert config_of(tmp_path / "sft.yaml", values).train.warmup_ratio == 0.0


def test_generated_answers_have_no_counterpart(tmp_path: Path) -> None:
    path = tmp_path / "grpo.yaml"
    path.write_text(yaml.safe_dump({**RECIPE, "num_generations": 8}), encoding="utf-8")
    assert {row.name for row in translate(path).of("missing")} >= {"num_generations"}


ARGUMENTS = shlex.split(
    "accelerate launch --config_file z.yaml --num_processes 4 trl/scripts/SCRIPT.py --model_name_or_path some/model "
    "--dataset_name user/rows --learning_rate 2.0e-4 --num-train-epochs=1 --packing --use_peft --lora_r 32 "
    "--lora_target_modules q_proj k_proj --eval_strategy no --output_dir out"
)


@pytest.mark.parametrize(("script", "loss"), [("sft", "cross_entropy"), ("dpo", "dpo")])
def test_arguments(script: str, loss: str) -> None:
    translation = translate([word.replace("SCRIPT", script) for word in ARGUMENTS])
    translation.check()
    config = load_config(translation.values)
    assert (config.loss.type, config.method.r, config.output_dir) == (loss, 32, "out")
    assert config.method.target_modules == ["q_proj", "k_proj"]
    assert config.train.num_train_epochs == 1.0
    assert config.data.packing is True


def test_the_number_of_processes_is_told() -> None:
    (row,) = [row for row in translate(ARGUMENTS).rows if row.name == "num_processes"]
    assert "4 times as large" in row.note
    two = translate(["torchrun", "--nproc_per_node=2", "sft.py", "--dataset_name", "a/b", "--use_peft"])
    assert [row.given for row in two.rows if row.name == "num_processes"] == [2]


def test_a_script_with_variables_and_lines_that_go_on(tmp_path: Path) -> None:
    path = tmp_path / "run.sh"
    path.write_text(
        "#!/bin/bash\nset -x\nexport MODEL=some/model  # which\nRATE=1e-4\n"
        "CUDA_VISIBLE_DEVICES=0 trl sft \\\n    --model_name_or_path ${MODEL} \\\n    --dataset_name user/rows \\\n"
        "    --learning_rate $RATE --use_peft --lora_r ${RANK:-8}\necho done\n",
        encoding="utf-8",
    )
    assert is_foreign(path)
    translation = translate(path)
    translation.check()
    config = load_config(translation.values)
    assert (config.model, config.train.learning_rate, config.method.r) == ("some/model", 1e-4, 8)


def test_a_script_that_names_a_file(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(RECIPE), encoding="utf-8")
    path = tmp_path / "run.sh"
    path.write_text("accelerate launch scripts/sft.py --config recipe.yaml --learning_rate 3e-4\n", encoding="utf-8")
    translation = translate(path)
    translation.check()
    assert load_config(translation.values).train.learning_rate == 3e-4


@pytest.mark.parametrize("text", ["echo nothing\n", "", "python train.py\n"])
def test_a_script_without_a_training(tmp_path: Path, text: str) -> None:
    path = tmp_path / "run.sh"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match="no command"):
        translate(path)


def test_quotes_and_flags() -> None:
    command = find_command("trl sft --a 'x y' --b --c=1 --d True --e 1 2 3 --f-g null")
    assert command is not None
    assert command.values == {"a": "x y", "b": True, "c": 1, "d": True, "e": [1, 2, 3], "f_g": None}


def test_files_of_lamina_are_not_foreign(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("model: smollm2-135m\ndata: {train: train.jsonl}\n", encoding="utf-8")
    assert not is_foreign(path)
    with pytest.raises(ConfigError, match="no configuration of"):
        translate(path)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("dataset_mixture", {"seed": 3}),
        ("dataset_mixture", ["a/b", "c/d"]),
        ("dataset_mixture", {"datasets": [None]}),
        ("dataset_mixture", {"datasets": [{"weight": 1.0}]}),
        ("dataset_mixture", "no JSON"),
        ("dataset_mixer", ["a/b"]),
        ("dataset_name", ["a/b", "c/d"]),
    ],
    ids=str,
)
def test_data_that_is_none_is_named(tmp_path: Path, name: str, value: Any) -> None:
    path = tmp_path / "sft.yaml"
    path.write_text(yaml.safe_dump({**RECIPE, "dataset_name": None, name: value}), encoding="utf-8")
    with pytest.raises(ConfigError, match=name):
        translate(path).check()
    translate(path).check(["data.train"])  # an override may name it


def test_a_share_of_null_is_the_whole(tmp_path: Path) -> None:
    values = {**RECIPE, "dataset_name": None, "dataset_mixer": {"a/b": None}, "dataset_splits": "train_sft"}
    assert config_of(tmp_path / "sft.yaml", values).data.train == "a/b:train_sft"


def test_evaluation_on_what_is_here(tmp_path: Path) -> None:
    """The split of a folder is looked for where the folder is; a file has none."""
    (tmp_path / "rows").mkdir()
    config = config_of(tmp_path / "sft.yaml", {**RECIPE, "dataset_name": "rows"})
    assert (config.data.train, config.data.eval) == (str(tmp_path / "rows"), f"{tmp_path / 'rows'}:test")
    (tmp_path / "rows.jsonl").write_text("{}\n", encoding="utf-8")
    config = config_of(tmp_path / "sft.yaml", {**RECIPE, "dataset_name": "rows.jsonl"})
    assert (config.data.train, config.data.eval) == (str(tmp_path / "rows.jsonl"), None)


@pytest.mark.parametrize("more", [{}, {"truncation_mode": "keep_start"}])
def test_no_limit_of_the_length_cuts_nothing(tmp_path: Path, more: dict[str, Any]) -> None:
    values = {**RECIPE, "max_length": None, **more}
    config = config_of(tmp_path / "sft.yaml", values)
    assert "max_length" not in config.data.model_fields_set  # it follows the model and the rows
    assert config.data.overlong == "auto"
    (row,) = [row for row in translate(tmp_path / "sft.yaml").rows if row.name == "max_length"]
    assert (row.kind, row.given, dict(row.values)) == ("own", None, {}) and "nothing is cut" in row.note
    given = find_command([*shlex.split("trl sft --model_name_or_path a/b --dataset_name c/d --max_length None")])
    assert given is not None and "max_length" not in translate(given).values["data"]
    del values["max_length"]
    assert config_of(tmp_path / "b.yaml", values).data.overlong == "cut"


@pytest.fixture
def local(tmp_path: Path) -> dict[str, Any]:
    """A recipe on a file."""
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "a", "completion": "b"}\n' * 4, encoding="utf-8")
    return {**RECIPE, "dataset_name": str(rows), "eval_strategy": "no"}


def test_a_slice_of_a_file_is_its_first_rows(tmp_path: Path, local: dict[str, Any]) -> None:
    config = config_of(tmp_path / "a.yaml", {**local, "dataset_train_split": "train[:2]"})
    assert (config.data.train, config.data.max_rows) == (local["dataset_name"], 2)
    config = config_of(tmp_path / "b.yaml", {**local, "dataset_train_split": "train[:50%]"})
    assert [(each.path, each.weight) for each in config.data.sources] == [(local["dataset_name"], 0.5)]
    assert config_of(tmp_path / "c.yaml", {**local, "dataset_train_split": "train"}).data.max_rows is None


@pytest.mark.parametrize(
    ("given", "lost"),
    [
        ({"dataset_train_split": "other"}, "dataset_train_split"),
        ({"dataset_train_split": "train[1:2]"}, "dataset_train_split"),
        ({"dataset_test_split": "test", "eval_strategy": "steps"}, "dataset_test_split"),
        ({"dataset_config": "en"}, "dataset_config"),
    ],
)
def test_splits_that_a_file_does_not_have_are_listed(
    tmp_path: Path, local: dict[str, Any], given: dict[str, Any], lost: str
) -> None:
    path = tmp_path / "sft.yaml"
    path.write_text(yaml.safe_dump({**local, **given}), encoding="utf-8")
    translation = translate(path)
    assert [row.name for row in translation.of("missing")] == [lost]
    translation.check(lenient=True)
    with pytest.raises(ConfigError, match=lost):
        translation.check()


def test_a_split_that_is_not_evaluated_is_listed(tmp_path: Path, local: dict[str, Any]) -> None:
    for name in (local["dataset_name"], "user/rows"):
        path = tmp_path / "sft.yaml"
        path.write_text(yaml.safe_dump({**local, "dataset_name": name, "dataset_test_split": "test"}), encoding="utf-8")
        translation = translate(path)
        translation.check()
        assert translation.values["data"]["eval"] is None
        assert [row.kind for row in translation.rows if row.name == "dataset_test_split"] == ["own"]


def test_a_local_folder_keeps_its_configuration_and_split(tmp_path: Path) -> None:
    (tmp_path / "rows").mkdir()
    values = {**RECIPE, "dataset_name": "rows", "dataset_config": "en", "dataset_train_split": "train_sft[:3]"}
    config = config_of(tmp_path / "sft.yaml", values)
    assert config.data.train == f"{tmp_path}/rows/en:train_sft" and config.data.max_rows == 3
    assert config.data.eval == f"{tmp_path}/rows/en:test"
