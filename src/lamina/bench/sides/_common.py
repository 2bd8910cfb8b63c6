"""Parts that several sides share: the base as transformers loads it, and padded micro-batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from lamina.bench.job import Job
from lamina.bench.optional import optional
from lamina.data.example import EncodedExample
from lamina.machine.hardware import DTYPES
from lamina.machine.quiet import quiet_transformers

IGNORED = -100


def load_model(job: Job) -> PreTrainedModel:
    """Loads the base in the run's dtype, on the CPU, with transformers' own attention (SDPA)."""
    with quiet_transformers():
        return AutoModelForCausalLM.from_pretrained(
            job.model, dtype=DTYPES[job.dtype], local_files_only=True, trust_remote_code=False
        )


def lora_config(job: Job) -> Any:
    """Returns peft's configuration of the run's LoRA."""
    peft: Any = optional("peft")
    return peft.LoraConfig(r=job.rank, lora_alpha=job.alpha, target_modules="all-linear", task_type="CAUSAL_LM")


@torch.no_grad()
def start_like_lamina(model: nn.Module, job: Job) -> None:
    """Initializes a peer's adapter with lamina's random values, so that losses can be compared step by step.

    Args:
        model: With LoRA on it, each `lora_A` in the order of the model's layers; q, k and v may lie in one tensor.
        job: Its seed is the adapter's.
    """
    generator = torch.Generator().manual_seed(job.seed)
    for name, parameter in model.named_parameters():
        if "lora_A" in name:
            bound = parameter.shape[1] ** -0.5
            for part in parameter.split(job.rank):
                part.copy_(torch.empty(part.shape).uniform_(-bound, bound, generator=generator))


def labels_of(example: EncodedExample) -> list[int]:
    """Returns token ids, with `IGNORED` for tokens that are not in the loss."""
    return [int(token) if used else IGNORED for token, used in zip(example.input_ids, example.supervised, strict=True)]


@dataclass(frozen=True)
class Padded:
    """Examples as rows of a matrix, each padded on the right to the longest of them.

    Attributes:
        input_ids: int64, (examples, longest).
        labels: int64, the same shape; `IGNORED` outside of the loss.
        lengths: Real tokens of each example.
        supervised_tokens: Tokens in the loss.
    """

    input_ids: torch.Tensor
    labels: torch.Tensor
    lengths: list[int]
    supervised_tokens: int


def padded_micro_batches(batch: Sequence[EncodedExample], device: torch.device, count: int) -> Iterator[Padded]:
    """Splits a step's examples into `count` micro-batches of about equal size, sorted by length to reduce padding.

    Padding is on the right, where causal attention does not see it, so no attention mask is needed, and kernels that
    support only causal masks can be used.
    """
    ordered = sorted(batch, key=len)
    size = -(-len(ordered) // count)
    for first in range(0, len(ordered), size):
        examples = ordered[first : first + size]
        longest = len(examples[-1])
        ids = torch.zeros(len(examples), longest, dtype=torch.int64)
        labels = torch.full_like(ids, IGNORED)
        for row, example in enumerate(examples):
            ids[row, : len(example)] = torch.from_numpy(example.input_ids)
            labels[row, : len(example)] = torch.tensor(labels_of(example))
        lengths = [len(example) for example in examples]
        supervised = sum(example.supervised_tokens for example in examples)
        yield Padded(ids.to(device), labels.to(device), lengths, supervised)
