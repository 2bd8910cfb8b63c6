"""What two short documents cannot show of a model is found by asking its parts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from lamina.compute.fusion import fast_path
from lamina.data.batch import Layout, build_batches
from lamina.data.example import EncodedExample
from lamina.losses.cross_entropy import cross_entropy
from lamina.structure.head import find_head
from tests.support.architectures import build_architecture

# Llama 4 as transformers makes it: with chunks that no document fills, and rotary positions in both layers.
CHANGES: dict[str, dict[str, Any]] = {
    "llama4_text": {"attention_chunk_size": 8192, "layer_types": None, "no_rope_layers": None}
}
# What changes a document's numbers only where many tokens stand before it, or beside it.
FAR_OFF: dict[str, tuple[str, dict[str, Any]]] = {
    "temperature by place": ("llama4_text", {"no_rope_layers": [1, 0], "floor_scale": 300, "attn_scale": 4.0}),
    "complex angles by the longest document": ("llama4_text", {"rope_parameters": {"rope_type": "dynamic"}}),
    "complex angles of latent attention": ("deepseek_v2", {"rope_parameters": {"rope_type": "dynamic"}}),
}


def documents(*lengths: int) -> list[EncodedExample]:
    rng = np.random.default_rng(2)
    return [
        EncodedExample(rng.integers(3, 250, length).astype(np.int32), np.arange(length) > 0, row)
        for row, length in enumerate(lengths, start=1)
    ]


@torch.no_grad()
def losses(model: PreTrainedModel, examples: list[EncodedExample], layout: Layout) -> float:
    head = find_head(model)
    return sum(float(cross_entropy(model, head, batch)) for batch in build_batches(examples, layout))


@pytest.mark.parametrize("case", FAR_OFF)
def test_a_document_is_not_changed_by_what_stands_far_before_it(case: str) -> None:
    name, changes = FAR_OFF[case]
    if "rope_parameters" in changes:
        changes = {"rope_parameters": {"rope_theta": 10000.0, "factor": 8.0, **changes["rope_parameters"]}}
        changes["max_position_embeddings"] = 512
    model, examples = build_architecture(name, **{**CHANGES.get(name, {}), **changes}), documents(900, 40, 70)
    own = losses(model, examples, Layout(together=False, own_attention=True))
    with fast_path(model, longest=900) as path:
        assert losses(model, examples, path.layout) == pytest.approx(own, rel=1e-6)
    assert not path.layout.together
    assert path.fallback is not None


@pytest.mark.parametrize("name", ["llama4_text", "deepseek_v2", "ministral3"])
def test_what_does_not_depend_on_others_goes_together(name: str) -> None:
    with fast_path(build_architecture(name, **CHANGES.get(name, {})), longest=900) as path:
        assert path.layout == Layout(together=True, own_attention=False)
