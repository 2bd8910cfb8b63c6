"""`lamina bench train` on a shape of a real model with random weights, side after side."""

from __future__ import annotations

from pathlib import Path

import torch
from tests.support.models_zoo import build_tokenizer
from tools.gpu.packages import is_installed
from tools.gpu.worker import Here
from transformers.models.auto import AutoModelForCausalLM

from lamina.bench.report import BenchReport
from lamina.bench.run import BenchSettings, bench_train
from lamina.bench.shapes import SHAPES

PEERS = ("peft", "trl", "unsloth")


def bench(here: Here) -> None:
    """Every side in a process of its own; its figures are told as soon as it is done."""
    shape = "tiny" if here.small else "tinyllama-1.1b"
    peers = [] if here.small else [peer for peer in PEERS if is_installed(peer)]
    settings = BenchSettings(
        model=str(_write(here.out / shape, shape)),
        peers=[*peers, "lamina-selective"],  # the last one, so that there is a comparison without any peer
        steps=2 if here.small else 4,
        rounds=1,
        tokens_per_step=512 if here.small else 8192,
        max_length=512 if here.small else 2048,
        dtype="float32" if here.small else "bfloat16",
    )
    _tell(here, bench_train(settings, lambda message: here.record.tell("bench", message)))
    missing = [peer for peer in PEERS if peer not in peers]
    if missing and not here.small:
        here.record.tell("peers that are not installed", ", ".join(missing))


def _write(folder: Path, shape: str) -> Path:
    """A model with random weights, made on the CPU, and a tokenizer that needs no download."""
    if not folder.is_dir():
        torch.manual_seed(0)
        with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
            model = AutoModelForCausalLM.from_config(SHAPES[shape](), dtype=torch.bfloat16)
        model.cpu().save_pretrained(folder)
        build_tokenizer().save_pretrained(folder)
    return folder


def _tell(here: Here, report: BenchReport) -> None:
    """Each side's figures, and the ratios."""
    for side in report.sides:
        here.record.tell(f"{side.side}: tokens/s", side.tokens_per_second)
        here.record.tell(f"{side.side}: share of the machine's own rate at plain products", side.gemm_share)
        here.record.tell(f"{side.side}: peak GiB", side.peak_bytes / 2**30)
        here.record.tell(f"{side.side}: chose", side.settings)
    for ratio in report.ratios:
        here.record.tell(f"lamina over {ratio.peer}: speed", ratio.speed)
        here.record.tell(f"lamina over {ratio.peer}: peak memory", ratio.peak_memory)
        here.record.tell(f"lamina and {ratio.peer}: losses differ by up to", ratio.loss_difference)
    for side, reason in (*report.failed.items(), *report.left_out.items()):
        here.record.tell(f"{side} did not run", reason[:300])
