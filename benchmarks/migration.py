"""Measures `lamina import` over a folder of example configurations of Axolotl, LLaMA-Factory or TRL.

    python benchmarks/migration.py axolotl/examples LLaMA-Factory/examples alignment-handbook/recipes trl [--verbose]
    python benchmarks/migration.py LLaMA-Factory/examples --with-models

Besides YAML files, it reads the command lines in shell scripts, in the docstrings of Python files and in Markdown.

A configuration counts as translated if every setting has a counterpart and lamina's own check accepts the result. The
kinds are told from the files: only supervised fine-tuning of text counts as the main figure; preference losses are
counted apart, and images, generated answers, pretraining, inference and merging are listed but not counted.

LLaMA-Factory's `freeze` and LLaMA Pro need the number of the model's layers, from its `config.json`. With
`--with-models` such files are there for the models of those examples, as for whoever trains them.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

from lamina.config import load_config
from lamina.dialects.recognize import recognize
from lamina.errors import ConfigError
from lamina.migration.arguments import Command, find_commands
from lamina.migration.draft import Translation
from lamina.migration.translate import translate

_MEDIA_WORDS = ("vision", "vl", "llava", "pixtral", "voxtral", "paddleocr", "mllm", "multimodal", "audio", "mossvl")
_MEDIA_KEYS = ("processor_type", "image_max_pixels", "freeze_vision_tower", "freeze_mm_modules", "video_fps")
_DATA = ("dataset", "dataset_name", "dataset_mixture", "train_dataset")
_OTHER_RL = ("grpo", "gdpo", "ebft", "ppo", "rloo")

# Layers of the models whose examples train some of them: Qwen3-4B, and Llama 3 8B with eight new blocks.
_LAYERS = {"Qwen/Qwen3-4B": 36, "models/llama3-8b-pro": 40}


def kind_of(values: Mapping[str, Any], path: Path) -> str:
    """Returns what a configuration trains: `sft lora`, `sft qlora`, `sft full`, `preference`, or why it is not counted.

    Args:
        values: Its settings.
        path: Where it is, whose words say what it trains in some projects.
    """
    words = {word for part in (*path.parts[-4:-1], path.stem) for word in part.replace("-", "_").lower().split("_")}
    text = f"{values.get('datasets')} {values.get('dataset')} {values.get('train_dataset')}"
    if any(values.get(key) for key in _MEDIA_KEYS) or words & set(_MEDIA_WORDS) or "mllm" in text:
        return "images or sound"
    if (
        values.get("do_train") is False
        or values.get("do_predict")
        or "export_dir" in values
        or "infer_backend" in values
    ):
        return "inference or merging"
    if values.get("rl") in _OTHER_RL or values.get("stage") == "ppo" or words & set(_OTHER_RL):
        return "generated answers"
    if values.get("rl") or values.get("reward_model") or values.get("stage") in ("dpo", "kto", "rm"):
        return "preference"
    if words & {"dpo", "orpo", "kto"}:
        return "preference"
    if values.get("process_reward_model") or values.get("num_labels"):
        return "classification"
    if values.get("pretraining_dataset") or values.get("stage") == "pt":
        return "pretraining"
    if values.get("diffusion"):
        return "diffusion"
    quantized = any(values.get(key) for key in ("load_in_4bit", "load_in_8bit", "quantization_bit", "quant_config"))
    peft = values.get("peft_config") or {}
    adapter = values.get("adapter") or values.get("use_peft") or values.get("finetuning_type") or peft.get("name")
    if adapter in (None, False, "full", "freeze"):
        return "sft full"
    return "sft qlora" if quantized or adapter == "qlora" else "sft lora"


def main() -> None:
    """Prints the figures of each folder, and every setting that was not translated."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--verbose", action="store_true", help="name each file that fails, and why")
    parser.add_argument("--with-models", action="store_true", help="as on a machine with the models of the examples")
    arguments = parser.parse_args()
    folders = [folder.absolute() for folder in arguments.folders]
    with tempfile.TemporaryDirectory() as work:
        for name, layers in _LAYERS.items() if arguments.with_models else ():
            (Path(work) / name).mkdir(parents=True)
            (Path(work) / name / "config.json").write_text(json.dumps({"num_hidden_layers": layers}), encoding="utf-8")
        with contextlib.chdir(work) if arguments.with_models else contextlib.nullcontext():
            for folder in folders:
                measure(folder, arguments.verbose)


def measure(folder: Path, verbose: bool) -> None:
    """Prints the figures of one folder."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    lost: Counter[str] = Counter()
    for where, command in commands_in(folder):
        kind = kind_of_command(command)
        counts[kind]["files"] += 1
        source = folder / where if where.endswith(".sh") else command
        _try(lambda source=source: translate(source), kind, where, counts, lost, verbose)
    for path in sorted([*folder.rglob("*.yaml"), *folder.rglob("*.yml")]):
        try:
            values = yaml.safe_load(path.read_text(encoding="utf-8"))
        except yaml.YAMLError as error:
            print(f"  not YAML: {path}: {str(error).splitlines()[0]}")
            continue
        if not isinstance(values, dict) or recognize(values) is None:
            counts["no configuration of a training"]["files"] += 1
            continue
        kind = kind_of(values, path)
        counts[kind]["files"] += 1
        where = str(path.relative_to(folder))
        _try(lambda path=path: translate(path), kind, where, counts, lost, verbose)
    print(f"{folder}")
    for kind, count in sorted(counts.items()):
        print(f"  {kind:32} {count['translated']:4} of {count['files']:4}")
    supervised = [count for kind, count in counts.items() if kind.startswith("sft")]
    done, all_of_them = sum(c["translated"] for c in supervised), sum(c["files"] for c in supervised)
    print(f"  {'supervised, text':32} {done:4} of {all_of_them:4} ({done / max(1, all_of_them):.1%})")
    for name, count in lost.most_common():
        print(f"    {count:3} x {name}")


def commands_in(folder: Path) -> list[tuple[str, Command]]:
    """Returns the command lines that start a training, each once, with the files that they are in."""
    found: dict[str, tuple[str, Command]] = {}
    for path in sorted([*folder.rglob("*.sh"), *folder.rglob("*.py"), *folder.rglob("*.md")]):
        text = path.read_text(encoding="utf-8", errors="replace")
        if "--model_name_or_path" not in text:
            continue
        for command in find_commands(text):
            if "model_name_or_path" in command.values and any(name in command.values for name in _DATA):
                found.setdefault(f"{command.words} {command.values}", (str(path.relative_to(folder)), command))
    return list(found.values())


def kind_of_command(command: Command) -> str:
    """Returns what a command line trains, as `kind_of` does."""
    words = set(command.words)
    if words & {"online", "nash", "xpo", "grpo", "rloo"}:
        return "generated answers and experiments"
    if words & {"vlm", "gemma3"} or "freeze_vision_tower" in command.values:
        return "images or sound"
    if words & {"dpo", "kto", "orpo", "cpo", "reward"}:
        return "preference"
    if "sft" not in words and "stage" not in command.values:
        return "generated answers and experiments"
    return kind_of(command.values, Path())


def _try(
    run: Callable[[], Translation],
    kind: str,
    where: str,
    counts: dict[str, Counter[str]],
    lost: Counter[str],
    verbose: bool,
) -> None:
    try:
        translation = run()
        translation.check()
        load_config(translation.values)
    except ConfigError as error:
        for problem in error.problems:
            lost[f"{kind}: {problem.field}"] += 1
        if verbose:
            print(f"  {kind}: {where}: {error}")
    else:
        counts[kind]["translated"] += 1


if __name__ == "__main__":
    main()
