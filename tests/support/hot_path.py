"""Documents, adapters, and both ways of running a model: fused, and as it is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from lamina.compute.kernels import use_backend
from lamina.compute.ops.attention import packed_attention
from lamina.config.methods.lora import LoraConfig
from lamina.data.batch import build_batch
from lamina.data.example import EncodedExample
from lamina.losses.cross_entropy import cross_entropy
from lamina.methods.shared.base import Injection, inject
from lamina.structure.head import find_head
from tests.support.models_zoo import build_model

# Longer than the sliding windows of the test models, and odd.
LENGTHS = (31, 5, 18)


def documents(lengths: tuple[int, ...] = LENGTHS) -> list[EncodedExample]:
    """Random tokens, most of them in the loss."""
    rng = np.random.default_rng(0)
    made = []
    for row, length in enumerate(lengths, start=1):
        supervised = rng.random(length) < 0.6
        supervised[0], supervised[-1] = False, True
        made.append(EncodedExample(rng.integers(3, 150, length).astype(np.int32), supervised, row))
    return made


def with_adapter(
    family: str, dtype: torch.dtype = torch.float32, model: PreTrainedModel | None = None, **lora: Any
) -> Injection:
    """An adapter with an effect, on a fresh model of the family or on `model`."""
    injection = inject(model or build_model(family, dtype), LoraConfig(**{"r": 4, "lora_alpha": 8, **lora}), seed=0)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, tensor in injection.tensors().items():
            if "lora_B" in name:
                tensor.normal_(0.0, 0.1, generator=generator)
    return injection


FUSED = ("llama", "qwen2", "qwen3", "mistral", "gemma2", "gemma3")


def loss_and_gradients(injection: Injection, device: str = "cpu") -> tuple[float, dict[str, torch.Tensor]]:
    """In whatever path the model is in."""
    tensors = injection.tensors()
    torch.manual_seed(3)
    loss = cross_entropy(injection.model, find_head(injection.model), build_batch(documents()).to(torch.device(device)))
    loss.backward()
    grads = {name: tensor.grad.clone() for name, tensor in tensors.items() if tensor.grad is not None}
    for tensor in tensors.values():
        tensor.grad = None
    return float(loss.detach()), grads


@contextmanager
def unfused(model: PreTrainedModel) -> Iterator[None]:
    with packed_attention(model), use_backend("plain"):
        yield


def without_padded_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets the head's chunks have just the rows that they have."""
    for module in ("chunks", "log_probs"):
        monkeypatch.setattr(f"lamina.compute.ops.{module}.padded_rows", lambda count, rows: count)
