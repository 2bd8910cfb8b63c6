"""A way of running a model is right for its adapter too."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from lamina.compute.fusion import FusionReport, fast_path
from lamina.compute.ops import attention
from lamina.config.methods.prefix_tuning import PrefixTuningConfig
from lamina.config.methods.prompt_tuning import PromptTuningConfig
from lamina.data.batch import Layout, build_batches
from lamina.data.example import EncodedExample
from lamina.distributed.failure import LostRankError
from lamina.errors import ModelError
from lamina.losses.cross_entropy import cross_entropy
from lamina.methods.shared.base import inject
from lamina.structure.head import find_head
from tests.support.architectures import build_architecture


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["gpt_neox", "phi", "olmoe"])
def test_what_the_way_itself_does_is_not_taken_for_rounding(
    monkeypatch: pytest.MonkeyPatch, name: str, dtype: torch.dtype
) -> None:
    """Rounding is measured in the model's own way: in the one that is looked at, its faults would be part of it."""
    right = attention.packed_attention_forward

    def wrong(module: Any, *args: Any, **kwargs: Any) -> Any:
        return 2.0 * right(module, *args, **kwargs)[0], None

    model: Any = build_architecture(name)
    model.to(dtype)
    with fast_path(model, longest=40) as path:
        assert path.layout == Layout(together=True, own_attention=False)
    monkeypatch.setattr(attention, "packed_attention_forward", wrong)
    with fast_path(model, longest=40) as path:
        assert path.layout.own_attention
        assert path.fallback is not None and "not its own" in path.fallback


def test_rows_that_see_the_padding_or_each_other_are_refused() -> None:
    """A model without lamina's attention is padded, unless that shows."""
    model = build_architecture("bloom")
    padded = Layout(together=False, own_attention=True, padded=True)
    with fast_path(model, longest=40) as path:
        assert path.layout == padded
        assert path.fallback is not None and "as rows of padded batches" in path.fallback
    for mix in (lambda x: x + 0.1 * x.mean(1, keepdim=True), lambda x: x + 0.1 * x[:, :1].mean(0, keepdim=True)):
        handle = model.get_input_embeddings().register_forward_hook(lambda module, args, x, mix=mix: mix(x))
        with fast_path(model, longest=40) as path:
            assert path.layout == Layout(together=False, own_attention=True)
        handle.remove()


@pytest.mark.parametrize("error", [LostRankError("rank 1 is gone", [1]), ModelError("a model"), OSError("a device")])
def test_what_ends_the_run_is_no_reason_to_run_it_in_another_way(error: Exception) -> None:
    """The processes decide together on recomputing, and one of them may be lost then."""
    asked: list[FusionReport] = []

    def decide(report: FusionReport) -> bool:
        asked.append(report)
        raise error

    with pytest.raises(type(error)), fast_path(build_architecture("llama"), decide, longest=40):
        pass
    assert len(asked) == 1


# Models in which virtual tokens are something else in one way than in the other: told apart by no positions; with keys
# and values that are changed on the way from the cache to the attention; beside a recurrence that sees
# them too; in one that hands no arguments on.
MODELS = {"llama4_text": {"attention_chunk_size": 32}, "diffllama": {}, "falcon_h1": {}, "stablelm": {}, "llama": {}}
METHODS = [PromptTuningConfig(num_virtual_tokens=4), PrefixTuningConfig(num_virtual_tokens=4)]


@pytest.mark.parametrize("config", METHODS, ids=lambda config: config.type)
@pytest.mark.parametrize("name", MODELS)
def test_virtual_tokens_are_those_of_the_models_own_way(
    name: str, config: PromptTuningConfig | PrefixTuningConfig
) -> None:
    model = build_architecture(name, **MODELS[name])
    rng, head = np.random.default_rng(1), find_head(model)
    examples = [EncodedExample(rng.integers(3, 250, 40).astype(np.int32), np.arange(40) > 0, row) for row in (1, 2, 3)]
    inject(model, config, seed=0)

    @torch.no_grad()
    def loss(layout: Layout) -> float:
        return sum(float(cross_entropy(model, head, batch)) for batch in build_batches(examples, layout))

    own = loss(Layout(together=False, own_attention=True))
    with fast_path(model, longest=40) as path:
        assert loss(path.layout) == pytest.approx(own, rel=2e-6)
    if name == "llama":
        assert path.layout == Layout(together=True, own_attention=False)
