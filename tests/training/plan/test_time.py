"""The speed is measured on real work that leaves no trace."""

from __future__ import annotations

import numpy as np
import torch

from lamina.compute.fusion import fast_path
from lamina.config.methods.lora import LoraConfig
from lamina.data.example import EncodedExample
from lamina.losses.cross_entropy import CrossEntropy
from lamina.methods.shared.base import inject
from lamina.structure.head import find_head
from lamina.training.plan.time import measured_tokens_per_second
from tests.support.models_zoo import build_model


def test_measuring_leaves_nothing_behind() -> None:
    """No gradient, no random number taken, and no word to what waits for gradients, such as DeepSpeed's buckets."""
    model = build_model("llama")
    tensors = list(inject(model, LoraConfig(r=2, lora_dropout=0.1), 0).tensors().values())
    heard: list[torch.Tensor] = []
    for tensor in tensors:
        tensor.register_post_accumulate_grad_hook(heard.append)
    examples = [EncodedExample(np.arange(n, dtype=np.int32), np.arange(n) > 0, row=1) for n in (7, 12)]
    before = torch.get_rng_state()
    model.train()
    with fast_path(model, longest=12) as path:
        speed = measured_tokens_per_second(model, find_head(model), CrossEntropy(), tensors, examples, path.layout)
    assert 0 < speed < float("inf")
    assert torch.equal(torch.get_rng_state(), before)
    assert not heard and all(tensor.grad is None for tensor in tensors)
