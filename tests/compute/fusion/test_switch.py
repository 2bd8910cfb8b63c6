"""A way of running a model is right for its adapter too."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lamina.compute.fusion import fast_path
from lamina.config.methods.prefix_tuning import PrefixTuningConfig
from lamina.config.methods.prompt_tuning import PromptTuningConfig
from lamina.data.batch import Layout, build_batches
from lamina.data.example import EncodedExample
from lamina.losses.cross_entropy import cross_entropy
from lamina.methods.shared.base import inject
from lamina.structure.head import find_head
from tests.support.architectures import build_architecture


@pytest.mark.parametrize("config", [PromptTuningConfig(num_virtual_tokens=4), PrefixTuningConfig(num_virtual_tokens=4)])
def test_every_document_has_its_virtual_tokens(config: PromptTuningConfig | PrefixTuningConfig) -> None:
    """Also in a model whose own attention, in chunks, would take documents together."""
    model = build_architecture("llama4_text", attention_chunk_size=32)
    rng, head = np.random.default_rng(1), find_head(model)
    examples = [EncodedExample(rng.integers(3, 250, 40).astype(np.int32), np.arange(40) > 0, row) for row in (1, 2, 3)]
    with fast_path(model, longest=40) as path:
        assert path.layout == Layout(together=True, own_attention=True)
    inject(model, config, seed=0)

    @torch.no_grad()
    def losses(layout: Layout) -> list[float]:
        return [float(cross_entropy(model, head, batch)) for batch in build_batches(examples, layout)]

    own = losses(Layout(together=False, own_attention=True))
    with fast_path(model, longest=40) as path:
        assert sum(losses(path.layout)) == pytest.approx(sum(own), rel=1e-6)
