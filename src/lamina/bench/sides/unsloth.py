"""Unsloth's FastLanguageModel under TRL's SFTTrainer, as its own notebooks use it. NVIDIA GPUs only."""

from __future__ import annotations

from typing import Any

from lamina.bench.job import Job
from lamina.bench.meter import Meter
from lamina.bench.optional import optional
from lamina.bench.sides import trl
from lamina.machine.hardware import DTYPES

ABOUT = "Unsloth's patched model under SFTTrainer, packing=True"
REQUIRES = ("unsloth", *trl.REQUIRES)
NEEDS_CUDA = True

_TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def run(job: Job, meter: Meter) -> dict[str, Any]:
    """Trains with Unsloth's kernels. Its import patches trl and transformers, so it comes before both are used."""
    unsloth = optional("unsloth")
    model, _ = unsloth.FastLanguageModel.from_pretrained(
        job.model, max_seq_length=job.max_length, dtype=DTYPES[job.dtype], load_in_4bit=False
    )
    model = unsloth.FastLanguageModel.get_peft_model(
        model,
        r=job.rank,
        lora_alpha=job.alpha,
        lora_dropout=0.0,
        bias="none",
        target_modules=_TARGETS,
        use_gradient_checkpointing=False,
        random_state=job.seed,
    )
    return {"unsloth": unsloth.__version__, **trl.train(job, meter, gradient_checkpointing=False, model=model)}
