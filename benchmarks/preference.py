"""DPO beside TRL's DPOTrainer: tokens a second and peak memory of the same steps, each side in its own process.

Both sides train LoRA of the same rank on the same linear layers from the same start, on the same tokens in the same
order, and their losses are compared step by step. TRL has the reference's log-probabilities computed beforehand, keeps
activations, and pads as its collator does. Tokens are real ones, without padding; the first step is not timed.

    python benchmarks/preference.py PAIRS.json [--pairs 4] [--steps 5] [--max-length 512] [--only lamina,trl] [--json]
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from lamina.bench.job import Job
from lamina.bench.sides._common import load_model, lora_config, start_like_lamina
from lamina.chat.template import template_of
from lamina.compute.fusion import fast_path
from lamina.config import TrainConfig, load_config
from lamina.config.losses.dpo import DpoConfig
from lamina.config.methods.lora import LoraConfig
from lamina.data.batch import build_units
from lamina.data.dataset import build_dataset
from lamina.data.example import EncodedExample
from lamina.data.side import Side
from lamina.losses.answers import answer_log_probs
from lamina.losses.dpo import Dpo
from lamina.machine.memory import peak_bytes
from lamina.machine.quiet import quiet_transformers
from lamina.methods.shared.base import inject
from lamina.models.load import load_base, load_tokenizer
from lamina.models.source import find_model
from lamina.optim import build_optimizer
from lamina.structure.head import find_head
from lamina.training.reference import find_reference, with_reference
from lamina.training.step import training_step

SIDES = ("lamina", "trl")
RANK, ALPHA, RATE, CLIP = 16, 32, 5e-5, 1.0
GIB = 2**30


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"))
    parser.add_argument("--pairs", type=int, default=4, help="of a step")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--max-length", type=int, default=512)
    parser.add_argument("--only", default=",".join(SIDES), help="sides, separated by commas")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side is not None:
        print(json.dumps(run_lamina(args) if args.side == "lamina" else run_trl(args)))
        return
    found = {side: in_process(side) for side in args.only.split(",")}
    if args.json:
        print(json.dumps(found))
    else:
        show(found)


def in_process(side: str) -> dict[str, Any]:
    """Runs one side in a process of its own, so that its peak memory is its own."""
    print(f"{side} ...", file=sys.stderr, flush=True)
    command = [sys.executable, __file__, *sys.argv[1:], "--side", side]
    result = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if result.returncode:
        return {"error": f"exit code {result.returncode}"}
    return json.loads(result.stdout.splitlines()[-1])


def steps_of(args: argparse.Namespace) -> tuple[Side, list[list[EncodedExample]]]:
    """The pairs, and those of each step, in the order of the file."""
    values = {"data": {"train": args.rows, "eval": None, "max_length": args.max_length, "max_dropped": 1.0}}
    config = load_config({**values, "model": args.model, "loss": {"type": "dpo"}})
    template = template_of(load_tokenizer(find_model(args.model)), config.data)
    pairs = build_dataset(config.data, template, 1, 0, sequences=Dpo.sequences).train
    needed = args.pairs * args.steps
    if len(pairs) < needed:
        raise SystemExit(f"{len(pairs)} pairs fit max_length; {needed} are needed")
    side = pairs[:needed]
    return side, [list(side[first : first + args.pairs]) for first in range(0, needed, args.pairs)]


def run_lamina(args: argparse.Namespace) -> dict[str, Any]:
    """lamina's own hot path, as `lamina train` runs it."""
    side, _ = steps_of(args)
    base = load_base(args.model, args.dtype)
    head, config = find_head(base.model), DpoConfig()
    injection = inject(base.model, LoraConfig(r=RANK, lora_alpha=ALPHA), 0)
    reference = find_reference(config, injection, base, None)
    assert reference is not None
    began = time.perf_counter()
    side = with_reference(side, reference, head, base, "auto", lambda message: None, "training")
    seconds_of_reference = time.perf_counter() - began
    batches = [list(side[first : first + args.pairs]) for first in range(0, len(side), args.pairs)]
    loss, parameters = Dpo(config), list(injection.tensors().values())
    optimizer = build_optimizer(TrainConfig(learning_rate=RATE), injection.tensors())
    base.model.train()
    losses, seconds = [], []
    with fast_path(base.model, longest=side.longest) as path:
        for batch in batches:
            began = time.perf_counter()
            given = (base.model, head, loss, optimizer, parameters, [batch], RATE, CLIP)
            losses.append(training_step(*given, layout=path.layout).loss)
            seconds.append(time.perf_counter() - began)
        parts = shares(base.model, head, loss, batches[-1], path.layout)
    figures = summed_up(batches, losses, seconds, seconds_of_reference)
    return {**figures, "fused_layers": path.fused, "shares": parts}


def shares(model: Any, head: Any, loss: Dpo, batch: Sequence[EncodedExample], layout: Any) -> dict[str, float]:
    """Where the time of a step goes: decoder forward, head with its gradient, and the decoder's backward."""
    (unit,) = build_units(batch, layout)
    began = time.perf_counter()
    hidden = head.decoder
    times: list[float] = []

    def timed(*given: Any, **more: Any) -> Any:
        start = time.perf_counter()
        result = hidden(*given, **more)
        times.append(time.perf_counter() - start)
        return result

    answers = answer_log_probs(model, dataclasses.replace(head, decoder=timed), unit)
    forward = time.perf_counter() - began
    began = time.perf_counter()
    answers.log_probs.sum().backward()
    backward = time.perf_counter() - began
    total = forward + backward
    return {
        "decoder forward": times[0] / total,
        "head, with its gradient": (forward - times[0]) / total,
        "decoder backward": backward / total,
    }


def run_trl(args: argparse.Namespace) -> dict[str, Any]:
    """TRL's DPOTrainer on the same tokens."""
    import datasets
    import trl  # pyright: ignore[reportMissingImports]
    from transformers import AutoTokenizer, TrainerCallback
    from trl.trainer.dpo_trainer import DPOTrainer  # pyright: ignore[reportMissingImports]

    datasets.disable_progress_bars()
    _, batches = steps_of(args)
    folder = str(find_model(args.model).folder)
    job = job_of(folder, args)
    losses: list[float] = []
    seconds: list[float] = []

    class Tokenized(DPOTrainer):
        def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
            return dataset

        def compute_loss(self, *given: Any, **more: Any) -> Any:
            loss = super().compute_loss(*given, **more)
            losses.append(float(loss.detach()))
            return loss

    class Clock(TrainerCallback):
        began = 0.0

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.began = time.perf_counter()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            seconds.append(time.perf_counter() - self.began)

    with tempfile.TemporaryDirectory() as out, quiet_transformers():
        settings = trl.DPOConfig(
            output_dir=out,
            max_length=None,
            per_device_train_batch_size=args.pairs,
            max_steps=args.steps,
            train_sampling_strategy="sequential",
            precompute_ref_log_probs=True,
            precompute_ref_batch_size=args.pairs,
            gradient_checkpointing=False,
            bf16=args.dtype == "bfloat16",
            use_cpu=True,
            optim="adamw_torch_fused",
            learning_rate=RATE,
            lr_scheduler_type="constant",
            max_grad_norm=CLIP,
            logging_strategy="no",
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            dataloader_pin_memory=False,
        )
        began = time.perf_counter()
        trainer = Tokenized(
            model=load_model(job),
            args=settings,
            train_dataset=datasets.Dataset.from_list([row_of(pair) for batch in batches for pair in batch]),
            processing_class=AutoTokenizer.from_pretrained(folder, local_files_only=True),
            peft_config=lora_config(job),
        )
        seconds_of_reference = time.perf_counter() - began
        start_like_lamina(trainer.model, job)
        trainer.add_callback(Clock())
        trainer.train()
    return {**summed_up(batches, losses, seconds, seconds_of_reference), "trl": trl.__version__}


def job_of(folder: str, args: argparse.Namespace) -> Job:
    """What the helpers of `lamina bench` read: the model and the adapter."""
    return Job("trl", folder, "", args.dtype, args.max_length, 1, RANK, ALPHA, RATE, CLIP, 0)


def row_of(pair: EncodedExample) -> dict[str, list[int]]:
    """A pair in TRL's own columns. What follows the token that ends the turn is in neither side's loss."""
    answers = []
    start = 0
    for number in range(2):
        sequence = pair.sequence(number)
        learned = sequence.supervised.nonzero()[0]
        start = int(learned[0])
        answers.append(sequence.input_ids[start : int(learned[-1]) + 1].tolist())
    return {"prompt_ids": pair.input_ids[:start].tolist(), "chosen_ids": answers[0], "rejected_ids": answers[1]}


def summed_up(
    batches: Sequence[Sequence[EncodedExample]], losses: list[float], seconds: list[float], reference: float
) -> dict[str, Any]:
    """The figures of a side; the first step warms up."""
    tokens = [sum(len(pair) for pair in batch) for batch in batches]
    return {
        "tokens_per_second": sum(tokens[1:]) / sum(seconds[1:]),
        "step_seconds_median": statistics.median(seconds[1:]),
        "reference_seconds": reference,
        "peak_gib": peak_bytes(torch.device("cpu")) / GIB,
        "tokens": tokens,
        "losses": losses,
    }


def show(found: dict[str, dict[str, Any]]) -> None:
    """Prints a table, and how far the losses are apart."""
    table = Table("side", "tokens/s", "s a step", "peak GiB", "losses")
    for side, figures in found.items():
        if "error" in figures:
            table.add_row(side, figures["error"], "", "", "")
            continue
        numbers = [f"{figures[name]:.2f}" for name in ("tokens_per_second", "step_seconds_median", "peak_gib")]
        table.add_row(side, *numbers, " ".join(f"{loss:.4f}" for loss in figures["losses"]))
    Console().print(table)
    if all("error" not in found.get(side, {"error": ""}) for side in SIDES):
        ours, theirs = (found[side] for side in SIDES)
        speed = ours["tokens_per_second"] / theirs["tokens_per_second"]
        print(f"{speed:.2f} times the tokens/s of TRL at {ours['peak_gib'] / theirs['peak_gib']:.2f} of its memory")
    if "shares" in found.get("lamina", {}):
        print(", ".join(f"{name} {share:.0%}" for name, share in found["lamina"]["shares"].items()))


if __name__ == "__main__":
    main()
