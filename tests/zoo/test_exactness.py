"""Whatever way of running a model is chosen, it gives the model's own loss and gradients: for every architecture."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from lamina.compute.fusion import fast_path
from lamina.config.methods.lora import LoraConfig
from lamina.data.batch import Layout, build_batches
from lamina.data.example import EncodedExample
from lamina.losses.cross_entropy import cross_entropy
from lamina.methods.shared.base import Injection, inject
from lamina.structure.head import find_head
from tests.support.architectures import ARCHITECTURES, build_architecture
from tests.support.zoo_page import LONGEST, PAGE, row

OWN = Layout(together=False, own_attention=True)

# Odd ones, a short one, and one that just holds a supervised token.
LENGTHS = (41, 7, 2, LONGEST)


def documents(vocabulary: int = 264) -> list[EncodedExample]:
    rng = np.random.default_rng(3)
    made = []
    for number, length in enumerate(LENGTHS, start=1):
        supervised = rng.random(length) < 0.7
        supervised[0], supervised[-1] = False, True
        made.append(EncodedExample(rng.integers(3, vocabulary, length).astype(np.int32), supervised, number))
    return made


def with_adapter(model: PreTrainedModel) -> Injection:
    """A LoRA adapter that has an effect, on every linear layer."""
    injection = inject(model, LoraConfig(r=1, lora_alpha=2), seed=0)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, tensor in injection.tensors().items():
            if "lora_B" in name:
                tensor.normal_(0.0, 0.05, generator=generator)
    return injection


def loss_and_gradients(injection: Injection, layout: Layout) -> tuple[float, dict[str, torch.Tensor]]:
    model, total = injection.model, 0.0
    for tensor in injection.tensors().values():
        tensor.grad = None
    head = find_head(model)
    for batch in build_batches(documents(), layout):
        loss = cross_entropy(model, head, batch)
        loss.backward()
        total += float(loss.detach())
    return total, {name: tensor.grad for name, tensor in injection.tensors().items() if tensor.grad is not None}


@pytest.mark.parametrize("name", sorted(ARCHITECTURES))
def test_loss_and_gradients_are_the_models_own(name: str) -> None:
    injection = with_adapter(build_architecture(name))
    loss, own = loss_and_gradients(injection, OWN)
    with fast_path(injection.model, longest=LONGEST) as path:
        found_loss, found = loss_and_gradients(injection, path.layout)
    assert found_loss == pytest.approx(loss, rel=1e-5)
    assert found.keys() == own.keys()
    scale = max(float(gradient.norm()) for gradient in own.values())
    for key, gradient in own.items():
        assert float((found[key] - gradient).norm()) <= 1e-4 * max(float(gradient.norm()), 1e-2 * scale), key
    documented = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith(f"| {name} |")]
    assert documented == ([row(name, path)] if path.fallback else []), (
        "python -m tests.support.zoo_page writes the page anew"
    )
