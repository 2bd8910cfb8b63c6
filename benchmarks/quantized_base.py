"""QLoRA on models of the guides' sizes: peak memory and time of loading, training, resuming and merging.

Writes a Llama of the size with random weights, layer by layer, in 16 bits (7b: 13 GB, 13b: 26 GB of disk), then runs
`lamina train` on it in processes of its own: r = 16 on all linear layers, documents of up to 512 tokens, one a step,
recomputed layers. The first process is interrupted after its first step, and a second one goes on from there.

    python benchmarks/quantized_base.py {7b,13b,tiny} ROWS.jsonl --folder FOLDER [--column FIELD=COLUMN ...] \
        [--steps 3] [--merge] [--json]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from safetensors.torch import save_file
from transformers import LlamaConfig

from lamina import files
from lamina.models.source import find_model

SIZES: dict[str, dict[str, Any]] = {
    "7b": {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32},
    "13b": {"hidden_size": 5120, "intermediate_size": 13824, "num_hidden_layers": 40, "num_attention_heads": 40},
    "tiny": {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 4, "num_attention_heads": 4},
}
VOCABULARY = 32_000
GIB = 2**30


def write_model(folder: Path, size: str) -> None:
    """A folder with random weights, a file a layer, and the embedded model's tokenizer cut to Llama's vocabulary."""
    config = LlamaConfig(vocab_size=VOCABULARY, max_position_embeddings=4096, dtype="bfloat16", **SIZES[size])
    config.architectures = ["LlamaForCausalLM"]
    hidden, inner = config.hidden_size, config.intermediate_size
    shapes = {
        "self_attn.q_proj": (hidden, hidden),
        "self_attn.k_proj": (hidden, hidden),
        "self_attn.v_proj": (hidden, hidden),
        "self_attn.o_proj": (hidden, hidden),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
        "input_layernorm": (hidden,),
        "post_attention_layernorm": (hidden,),
    }
    parts = {
        f"layer-{layer:02d}.safetensors": {
            f"model.layers.{layer}.{name}.weight": shape for name, shape in shapes.items()
        }
        for layer in range(config.num_hidden_layers)
    }
    ends = {"model.embed_tokens.weight": (VOCABULARY, hidden), "lm_head.weight": (VOCABULARY, hidden)}
    parts["ends.safetensors"] = {**ends, "model.norm.weight": (hidden,)}
    torch.manual_seed(0)
    with files.new_folder(folder) as aside:
        for name, tensors in parts.items():
            save_file({key: _random(shape) for key, shape in tensors.items()}, aside / name, metadata={"format": "pt"})
        weight_map = {key: name for name, tensors in parts.items() for key in tensors}
        index = {"metadata": {}, "weight_map": weight_map}
        files.write_json(aside / "model.safetensors.index.json", index)
        config.save_pretrained(aside)
        _write_tokenizer(aside)


def _random(shape: tuple[int, ...]) -> torch.Tensor:
    if len(shape) == 1:
        return torch.ones(shape, dtype=torch.bfloat16)
    return torch.empty(shape, dtype=torch.bfloat16).normal_(0.0, 0.02)


def _write_tokenizer(folder: Path) -> None:
    """Tokens beyond the vocabulary go, with the merges that make them."""
    source = find_model("smollm2-135m").folder
    tokenizer = json.loads((source / "tokenizer.json").read_text(encoding="utf-8"))
    model = tokenizer["model"]
    model["vocab"] = {token: number for token, number in model["vocab"].items() if number < VOCABULARY}
    pairs = [pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"]]
    model["merges"] = [pair for pair in pairs if "".join(pair) in model["vocab"]]
    files.write_json(folder / "tokenizer.json", tokenizer)
    for name in ("tokenizer_config.json", "chat_template.jinja"):
        (folder / name).write_bytes((source / name).read_bytes())


def run(arguments: list[str], until: Path | None = None) -> dict[str, Any]:
    """A lamina command in a process of its own: its JSON, its time, and its peak memory (VmHWM, read as it runs).

    Args:
        arguments: Of the command.
        until: The process is interrupted as soon as there is something here.
    """
    command = [sys.executable, "-m", "lamina", *arguments, "--json"]
    started, peak = time.perf_counter(), [0]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"}
    ) as child:
        watcher = threading.Thread(target=_watch, args=(child, peak, until), daemon=True)
        watcher.start()
        output, _ = child.communicate()
    if child.returncode and until is None:
        sys.exit(f"{' '.join(command)} failed with {child.returncode}: {output}")
    return {"seconds": time.perf_counter() - started, "peak_bytes": peak[0], "result": json.loads(output)}


def _watch(child: subprocess.Popen[str], peak: list[int], until: Path | None) -> None:
    """The largest resident size of the process alone; it starts no others."""
    interrupted = False
    with contextlib.suppress(OSError):
        while True:
            for line in Path(f"/proc/{child.pid}/status").read_text().splitlines():
                if line.startswith("VmHWM:"):
                    peak[0] = max(peak[0], int(line.split()[1]) * 1024)
            if until is not None and not interrupted and until.is_dir() and any(until.iterdir()):
                child.send_signal(signal.SIGINT)
                interrupted = True
            time.sleep(0.05)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("size", choices=SIZES)
    parser.add_argument("rows", type=Path)
    parser.add_argument("--folder", type=Path, required=True, help="for the model and the runs")
    parser.add_argument("--column", action="append", default=[], help="FIELD=COLUMN, such as prompt=question")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument(
        "--merge", action="store_true", help="merge the adapter too, for which disk must hold the model twice"
    )
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    model = args.folder / args.size
    if not model.is_dir():
        print(f"Writing {model} ...", file=sys.stderr, flush=True)
        write_model(model, args.size)
    out = args.folder / f"run-{args.size}"
    config = {
        "model": str(model),
        "data": {"train": str(args.rows), "max_rows": 64, "eval": None, "max_length": 512},
        "quantization": {"bits": 4},
        "train": {
            "per_device_train_batch_size": 1,
            "gradient_checkpointing": True,
            "max_steps": args.steps,
            "save_steps": 1,
        },
        "output_dir": str(out),
    }
    if args.column:
        config["data"]["columns"] = dict(pair.split("=", 1) for pair in args.column)
    path = args.folder / f"{args.size}.json"
    files.write_json(path, config)
    phases = {}
    if not out.is_dir():
        phases["first start, interrupted after a step"] = run(["train", str(path)], until=out / "checkpoints")
    phases["resumed"] = run(["train", str(path), "--resume"])
    if args.merge:
        phases["merged"] = run(["merge", str(out), "--out", str(args.folder / f"merged-{args.size}")])
    if args.json:
        print(json.dumps(phases))
        return
    table = Table("phase", "seconds", "peak GiB", "losses")
    for name, phase in phases.items():
        table.add_row(
            name, f"{phase['seconds']:.0f}", f"{phase['peak_bytes'] / GIB:.2f}", str(phase["result"].get("train_loss"))
        )
    Console().print(table)


if __name__ == "__main__":
    main()
