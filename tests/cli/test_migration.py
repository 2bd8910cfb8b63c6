"""`lamina import`, and `lamina train` with a configuration of another library."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
import yaml

from lamina.config import load_config
from lamina.runs import Run
from tests.support.cli import Cli


@pytest.fixture
def foreign(tmp_path: Path, model_folder: Path, rows: Path) -> Path:
    """A configuration of LLaMA-Factory that trains for two steps on the two-layer model."""
    (tmp_path / "data").mkdir()
    columns = {"prompt": "prompt", "response": "completion"}
    info = {"mine": {"file_name": str(rows), "columns": columns}}
    (tmp_path / "data" / "dataset_info.json").write_text(json.dumps(info), encoding="utf-8")
    path = tmp_path / "lf.yaml"
    values = {
        "model_name_or_path": str(model_folder),
        "stage": "sft",
        "finetuning_type": "lora",
        "lora_rank": 2,
        "dataset": "mine",
        "cutoff_len": 64,
        "max_steps": 2,
        "learning_rate": 1e-2,
        "per_device_train_batch_size": 2,
        "output_dir": str(tmp_path / "run"),
        "bf16": True,
    }
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return path


def test_import_prints_the_configuration_and_the_table(cli: Cli, foreign: Path) -> None:
    result = cli("import", foreign)
    assert result.code == 0
    assert load_config(yaml.safe_load(result.out)).train.max_steps == 2
    for words in ("LLaMA-Factory", "Mapped", "lora_rank: 2", "method.r: 2", "Done by lamina itself", "bf16"):
        assert words in result.err


def test_import_writes_a_file_once(cli: Cli, foreign: Path, tmp_path: Path) -> None:
    out = tmp_path / "run.yaml"
    result = cli("import", foreign, "--out", out, "--json")
    assert result.code == 0
    assert result.json()["from"] == "llama-factory"
    assert result.json()["out"] == str(out)
    assert {row["kind"] for row in result.json()["rows"]} == {"mapped", "default", "own"}
    assert load_config(out).data.max_length == 64
    assert cli("import", foreign, "--out", out).code == 2


def test_settings_without_a_counterpart_stop_unless_lenient(cli: Cli, foreign: Path) -> None:
    foreign.write_text(foreign.read_text() + "neftune_noise_alpha: 5\nmixture_of_depths: load\n", encoding="utf-8")
    result = cli("import", foreign)
    assert (result.code, result.out) == (2, "")
    for words in ("neftune_noise_alpha", "mixture_of_depths", "--lenient"):
        assert words in result.error()
    lenient = cli("import", foreign, "--lenient")
    assert lenient.code == 0
    assert "# Not translated: mixture_of_depths" in lenient.out
    refused = cli("train", foreign)
    assert refused.code == 2
    assert "lamina import" in refused.error()


def test_train_translates_first(cli: Cli, foreign: Path, tmp_path: Path) -> None:
    result = cli("train", foreign, "seed=1", "dtype=float32", "--json")
    assert result.code == 0
    assert result.json()["steps"] == 2
    run = Run(tmp_path / "run")
    assert run.config.method.type == "lora"
    assert (run.config.seed, run.config.train.max_steps) == (1, 2)
    assert "Mapped" in result.err
    again = cli("train", run.config_path, "--resume", "--json")  # its own configuration is lamina's
    assert again.code == 0


def test_arguments(cli: Cli) -> None:
    text = "--model_name_or_path some/model --dataset_name user/rows --learning_rate 1e-4 --use_peft --lora_r 4"
    words = shlex.split(text)
    result = cli("import", "--", "accelerate", "launch", "sft.py", *words)
    assert result.code == 0
    assert load_config(yaml.safe_load(result.out)).train.learning_rate == 1e-4
    assert cli("import", " ".join(["trl", "sft", *words])).code == 0


@pytest.mark.parametrize("name", ["nothing.yaml", "nothing.sh", "no words at all"])
def test_what_is_no_configuration_is_an_error(cli: Cli, name: str) -> None:
    result = cli("import", name)
    assert (result.code, result.out) == (2, "")
    assert "Fix:" in result.error()


def test_data_that_is_not_named_is_asked_for(cli: Cli, foreign: Path, rows: Path) -> None:
    """The fix works: an override names it, and leaving it out does not."""
    values = yaml.safe_load(foreign.read_text(encoding="utf-8"))
    foreign.write_text(yaml.safe_dump({**values, "dataset": None}), encoding="utf-8")
    for command in (["import", foreign], ["import", foreign, "--lenient"], ["train", foreign, "--dry-run"]):
        error = cli(*command).error()
        assert "dataset: is not given: it names no data" in " ".join(error.split())
        assert f"Fix: name the data: `lamina train {foreign} data.train=DATA`" in " ".join(error.split())
    assert cli("train", foreign, f"data.train={rows}", "--dry-run").code == 0


def test_arguments_without_model_or_data(cli: Cli) -> None:
    assert "give --model_name_or_path and --dataset_name" in cli("import", "--", "trl", "sft", "--lora_r", "8").error()
