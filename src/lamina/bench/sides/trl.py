"""TRL's SFTTrainer with its fastest settings: packing, autocast, fused AdamW, and no saving or logging."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from typing import Any

import torch
from transformers import AutoTokenizer, TrainerCallback

from lamina.bench.job import Job
from lamina.bench.meter import Meter
from lamina.bench.optional import is_installed, optional
from lamina.bench.sides._common import labels_of, load_model, lora_config, start_like_lamina
from lamina.data.example import EncodedExample

ABOUT = "TRL SFTTrainer, packing=True (bfd, padding-free: documents kept apart), bf16 autocast"
REQUIRES = ("trl", "datasets", "peft")
NEEDS_CUDA = False

# Packed rows in a step on the CPU. TRL's attention there pays for every pair of tokens of a row, other documents'
# too, so several shorter rows are faster than one long one (docs/benchmarks.md has the figures).
CPU_ROWS = 4


def run(job: Job, meter: Meter) -> dict[str, Any]:
    """Trains with SFTTrainer, without gradient checkpointing."""
    return train(job, meter, gradient_checkpointing=False)


def train(job: Job, meter: Meter, gradient_checkpointing: bool, model: Any = None) -> dict[str, Any]:
    """Trains with SFTTrainer, with or without gradient checkpointing (TRL's default is with).

    Each step has lamina's documents, packed into `rows` rows of about equal length: like `packing=True`, but with less
    padding, and in the same order for all sides.

    Args:
        job: What to do.
        meter: Goes around each step.
        gradient_checkpointing: Whether layers are recomputed.
        model: A peft model to train; by default the base with LoRA on it.
    """
    trl, datasets = optional("trl"), optional("datasets")
    datasets.disable_progress_bars()
    cuda = meter.device.type == "cuda"
    rows = 1 if cuda else min(CPU_ROWS, min(len(batch) for batch in job.batches))
    adapter = None if model is not None else lora_config(job)
    if model is None:
        model = load_model(job)
        if cuda and is_installed("flash_attn"):
            model.set_attn_implementation("flash_attention_2")
    with tempfile.TemporaryDirectory() as folder:
        arguments = _arguments(trl.SFTConfig, job, folder, rows, cuda, gradient_checkpointing)
        trainer = _metered(trl.SFTTrainer, job, meter)(
            model=model,
            args=arguments,
            train_dataset=datasets.Dataset.from_list([row for batch in job.batches for row in packed(batch, rows)]),
            processing_class=AutoTokenizer.from_pretrained(job.model, local_files_only=True, trust_remote_code=False),
            peft_config=adapter,
        )
        start_like_lamina(trainer.model, job)
        trainer.add_callback(trainer.step_callback())
        trainer.train()
    return {
        "trl": trl.__version__,
        "packing": f"bfd, padding-free, {rows} rows a step",
        "attention": model.config._attn_implementation,
        "autocast": arguments.bf16,
        "gradient_checkpointing": gradient_checkpointing,
    }


def _arguments(config: Any, job: Job, folder: str, rows: int, cuda: bool, gradient_checkpointing: bool) -> Any:
    return config(
        output_dir=folder,
        packing=True,
        packing_strategy="bfd",
        dataset_kwargs={"skip_prepare_dataset": True},  # rows are tokenised and packed already
        max_length=job.max_length,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=rows,
        max_steps=len(job.batches),
        train_sampling_strategy="sequential",
        gradient_checkpointing=gradient_checkpointing,
        bf16=job.dtype == "bfloat16",
        use_cpu=not cuda,
        optim="adamw_torch_fused",
        learning_rate=job.learning_rate,
        lr_scheduler_type="constant",
        weight_decay=0.0,
        max_grad_norm=job.max_grad_norm,
        dataloader_pin_memory=cuda,
        logging_strategy="no",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        seed=job.seed,
    )


def packed(batch: Sequence[EncodedExample], rows: int) -> list[dict[str, list[int]]]:
    """Packs a step's examples into rows in TRL's format; each example goes to the shortest row so far."""
    bins: list[list[EncodedExample]] = [[] for _ in range(rows)]
    for example in sorted(batch, key=len, reverse=True):
        min(bins, key=lambda row: sum(map(len, row))).append(example)
    return [
        {
            "input_ids": [token for example in row for token in example.input_ids.tolist()],
            "labels": [label for example in row for label in labels_of(example)],
            "seq_lengths": [len(example) for example in row],
        }
        for row in bins
    ]


def _metered(trainer_class: Any, job: Job, meter: Meter) -> Any:
    """Subclasses SFTTrainer to time its steps: each from the previous update to its own, including data loading."""

    class Metered(trainer_class):
        loss = torch.zeros(())

        def training_step(self, *arguments: Any, **settings: Any) -> torch.Tensor:
            # Already divided by the supervised tokens of the whole step, so the micro-batches' losses add up.
            loss = super().training_step(*arguments, **settings)
            self.loss = self.loss.to(loss.device) + loss
            return loss

        def step_callback(self) -> TrainerCallback:
            return _StepCallback(self)

    class _StepCallback(TrainerCallback):
        def __init__(self, trainer: Any) -> None:
            self.trainer = trainer
            self.batches = iter(job.batches)

        def on_train_begin(self, *_: Any, **__: Any) -> None:
            meter.loaded(self.trainer.model)
            meter.begin()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            batch = next(self.batches)
            loss, self.trainer.loss = float(self.trainer.loss), torch.zeros(())
            meter.end(loss, [len(example) for example in batch], sum(e.supervised_tokens for e in batch))
            meter.begin()

    return Metered
