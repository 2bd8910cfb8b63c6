"""Command lines and shell scripts: where a command ends, and what its values are."""

from __future__ import annotations

from pathlib import Path

import pytest

from lamina.config import load_config
from lamina.migration.arguments import find_command, find_commands
from lamina.migration.translate import translate

SFT = "trl sft --model_name_or_path a/b --dataset_name c/d --use_peft --output_dir out --lora_r 8"
VALUES = {"model_name_or_path": "a/b", "dataset_name": "c/d", "use_peft": True, "output_dir": "out", "lora_r": 8}


def test_hyphens_are_those_of_names_alone() -> None:
    words = (
        "trl sft --model-name-or-path=a/b-c --dataset_name=trl-lib/Capybara --output_dir=Qwen2-0.5B-SFT --no-packing"
    )
    translation = translate(words.split())
    config = load_config(translation.values)
    assert (config.model, config.data.train, config.output_dir) == ("a/b-c", "trl-lib/Capybara", "Qwen2-0.5B-SFT")


@pytest.mark.parametrize(
    "line",
    [
        f"{SFT} 2>&1 | tee log.txt",
        f"cd x && {SFT} && echo --done",
        f"cd x; {SFT}; echo --done yes",
        f"nohup {SFT} > log.txt 2>&1 &",
        f"{SFT} >log.txt 2> 'my errors.txt' || exit 1",
        f"{SFT} &>> log.txt &",
        f"{SFT} > >(tee out.txt) 2> >(tee errors.txt >&2)",
        f"{SFT} < /dev/null |& tee log",
        f"if true; then {SFT}; fi",
        f"{SFT} # and then; trl dpo --lora_r 64 --learning_rate 1 --num_train_epochs 2 --seed 3 --max_steps 2",
    ],
)
def test_a_command_ends_at_an_operator(line: str, tmp_path: Path) -> None:
    script = tmp_path / "run.sh"
    script.write_text(f"#!/bin/bash\n{line}\n", encoding="utf-8")
    command = find_command(script.read_text(encoding="utf-8"))
    assert command is not None and command.values == VALUES
    assert load_config(translate(script).values).method.type == "lora"
    typed = find_command([line])
    assert typed is not None and typed.values == VALUES


def test_operators_in_quotes_and_numbers_before_a_redirection_are_values() -> None:
    script = 'NAME=\'a; b\'\ntrl sft --dataset_name c/d --run_name "x | y && z > w" --project "$NAME" --seed 2 > log'
    (command,) = find_commands(script)
    assert command.values == {"dataset_name": "c/d", "run_name": "x | y && z > w", "project": "a; b", "seed": 2}


def test_a_launcher_behind_other_words() -> None:
    (command,) = find_commands(f"nohup accelerate launch --num_processes 2 {SFT.replace('trl sft', 'sft.py')} &")
    assert command.values == {**VALUES, "num_processes": 2}
