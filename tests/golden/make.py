"""Makes a set of golden files with the lamina at hand: `python -m tests.golden.make FOLDER`.

A set is made once, when a format on disk is new, and never again: `format-N.tar.xz` was written by the first version
that wrote format N, and every later version must read it (`tests/golden/test_golden.py`). Make it in a folder of a
neutral name, because formats may hold absolute paths, and pack it:

    python -m tests.golden.make /tmp/golden
    tar --sort=name --mtime=@0 --owner=0 --group=0 --numeric-owner -C /tmp/golden -cJf tests/golden/format-N.tar.xz .

    base/                   a two-layer Llama of 8 dimensions with its tokenizer
    rows.jsonl              the training data
    adapters/NAME/          the adapter of a finished run, one a method
    runs/finished[-NAME]    a whole run, its adapter and checkpoints in it
    runs/unfinished[-NAME]  the same, stopped by a signal in the middle
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import lamina
from lamina.errors import Interrupted
from lamina.runs.events import Event
from tests.support.models_zoo import CHATML, build_model, build_tokenizer
from tests.support.training import write_rows

SMALL = {
    "hidden_size": 8,
    "intermediate_size": 16,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 4,
    "attention_bias": True,  # for what trains biases
}

METHODS: dict[str, dict[str, Any]] = {
    "adalora": {"type": "adalora", "init_r": 3, "target_r": 2},
    "bitfit": {"type": "bitfit"},
    "bottleneck": {"type": "bottleneck", "bottleneck_size": 2},
    "dora": {"type": "dora", "r": 2},
    "full": {"type": "full"},
    "ia3": {"type": "ia3"},
    "ln_tuning": {"type": "ln_tuning"},
    "loha": {"type": "loha", "r": 2},
    "lokr": {"type": "lokr", "r": 2},
    "lora": {"type": "lora", "r": 2, "lora_alpha": 4},
    "lora-pissa": {"type": "lora", "r": 2, "init_lora_weights": "pissa"},
    "lora-4bit": {"type": "lora", "r": 2},
    "lora-biases": {"type": "lora", "r": 2, "target_modules": ["q_proj"], "modules_to_save": ["norm"], "bias": "all"},
    "lora-eva": {"type": "lora", "r": 2, "init_lora_weights": "eva", "eva_config": {"rho": 1.5}},
    "lora-patterns": {"type": "lora", "r": 2, "use_rslora": True, "rank_pattern": {"q_proj": 3}},
    "lora-template": {"type": "lora", "r": 2},
    "p_tuning": {"type": "p_tuning", "num_virtual_tokens": 2, "encoder_hidden_size": 4},
    "peft-oft": {"type": "peft", "peft_type": "OFT", "oft_block_size": 4, "target_modules": ["q_proj", "v_proj"]},
    "prefix_tuning": {"type": "prefix_tuning", "num_virtual_tokens": 2},
    "prompt_tuning": {"type": "prompt_tuning", "num_virtual_tokens": 2},
    "vera": {"type": "vera", "r": 4},
}


# What else is different in their runs: what the lock, too, has to say.
SETTINGS: dict[str, dict[str, Any]] = {
    "lora-4bit": {"quantization": {"bits": 4, "blocksize": 32}},
    "lora-template": {"data": {"chat_template": "template.jinja", "thinking": "strip"}},
}


def run_settings(name: str, method: dict[str, Any], **train: Any) -> dict[str, Any]:
    return {
        "model": "base",
        "data": {"train": "rows.jsonl", "eval": 0.2, "max_length": 128, "packing": False},
        "method": method,
        "train": {
            "max_steps": 8,
            "per_device_train_batch_size": 2,
            "gradient_accumulation_steps": 2,
            "learning_rate": 5e-3,
            "eval_steps": 2,
            "save_steps": 2,
            "save_total_limit": 1,
            **train,
        },
        "dtype": "float32",
        "output_dir": f"runs/{name}",
    }


def stop_after(step: int, values: dict[str, Any]) -> None:
    """Leaves a run as Ctrl-C does."""

    def on_event(event: Event) -> None:
        if event.kind == "step" and event.step == step:
            os.kill(os.getpid(), signal.SIGINT)

    try:
        lamina.train(values, on_event)
    except Interrupted:
        return
    raise AssertionError("the run was not stopped")


def main(folder: Path) -> None:
    folder.mkdir(parents=True)
    os.chdir(folder)
    base = build_model("llama", vocab_size=len(build_tokenizer()), **SMALL)
    base.save_pretrained("base")
    build_tokenizer().save_pretrained("base")
    write_rows(Path("rows.jsonl"), 16)
    Path("template.jinja").write_text("{# a file #}" + CHATML)
    for name, method in METHODS.items():
        values = run_settings(f"made-{name}", method, max_steps=3, eval_steps=3, save_steps=3)
        for section, changes in SETTINGS.get(name, {}).items():
            values[section] = {**values.get(section, {}), **changes}
        run = lamina.train(values)
        shutil.copytree(run.adapter, Path("adapters", name))
        shutil.rmtree(run.path)
    lora = {"type": "lora", "r": 2, "lora_alpha": 4, "lora_dropout": 0.1}
    adalora = METHODS["adalora"] | {"tfinal": 2}
    for name, method in {"": lora, "-adalora": adalora}.items():
        lamina.train(run_settings(f"finished{name}", method))
        stop_after(5, run_settings(f"unfinished{name}", method))
    for leftover in Path().rglob(".lock"):
        leftover.unlink()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
