"""`AttachedModels`: an adapter that takes another one's place computes what it does on a model of its own."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from lamina.adapters.adapter import Adapter, adapter_digest
from lamina.adapters.fit import fit
from lamina.adapters.hf_peft import peft_content
from lamina.adapters.lock import Lock
from lamina.engine.attached import AttachedModels
from lamina.errors import AdapterError
from lamina.methods.shared.base import find_method, inject
from tests.support.method_cases import CASES, config_of
from tests.support.models_zoo import build_model

IDS = torch.tensor([[5, 9, 2, 77, 31]])


def adapter_of(case: str, seed: int, is_ours: bool = True) -> Adapter:
    """An adapter as read from disk, with random tensors."""
    config = config_of(case)
    if find_method(config.type).needs_biases:
        pytest.skip("the model has no biases")
    injection = inject(build_model("llama", vocab_size=259), config, seed=0)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in injection.tensors().values():
            tensor += 0.1 * torch.randn(tensor.shape, generator=generator)
    saved = find_method(config.type).saved(injection)
    settings = saved.config.model_dump(mode="json")
    tensors = {name: tensor.detach().clone() for name, tensor in saved.tensors.items()}
    return Adapter(
        Path("runs/a"),
        saved.config,
        settings,
        "",
        tensors,
        cast(Lock, SimpleNamespace(lamina="0.1", classes=None)) if is_ours else None,
        [],
        peft_content(injection, saved.config, "base"),
        adapter_digest(settings, tensors),
    )


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    return model(input_ids=IDS, use_cache=False).logits


@pytest.mark.parametrize("is_ours", [True, False], ids=["lamina's", "peft's"])
@pytest.mark.parametrize("case", CASES)
def test_an_adapter_in_another_ones_place_is_as_on_a_model_of_its_own(case: str, is_ours: bool) -> None:
    adapters = [adapter_of(case, seed, is_ours) for seed in (1, 2)]
    bare = build_model("llama", vocab_size=259)
    before, models, seen = logits(bare), AttachedModels(bare), []
    for adapter in (adapters[0], adapters[1], adapters[0]):
        fresh = fit(adapter, build_model("llama", vocab_size=259)).injection
        attached = models.attach(adapter)
        found, wanted = attached.injection.saved_tensors(), fresh.saved_tensors()
        assert found.keys() == wanted.keys()
        assert all(torch.equal(found[name], wanted[name]) for name in wanted)
        assert torch.equal(logits(attached.model), logits(fresh.model.eval()))
        assert not attached.model.training and not any(p.requires_grad for p in attached.model.parameters())
        seen.append(attached.model)
        models.give_back(attached)
    assert is_ours is False or (seen[0] is seen[1] is seen[2])
    assert torch.equal(logits(bare), before)


def test_another_rank_or_scaling_gets_another_model() -> None:
    models = AttachedModels(build_model("llama", vocab_size=259))
    one = models.attach(adapter_of("lora", 1))
    models.give_back(one)
    other = models.attach(adapter_of("lora of many settings", 1))
    assert other.model is not one.model
    assert models.attach(adapter_of("lora", 2)).model is one.model
    assert models.attach(adapter_of("lora", 2)).model is not one.model, "it was not given back"


def test_only_a_few_models_are_kept() -> None:
    models = AttachedModels(build_model("llama", vocab_size=259))
    cases = ("lora", "ia3", "vera", "lokr", "dora", "loha")
    first = {case: models.attach(adapter_of(case, 1)) for case in cases}
    for attached in first.values():
        models.give_back(attached)
    again = {case: models.attach(adapter_of(case, 2)).model for case in cases}
    assert [again[case] is first[case].model for case in cases] == [False, False, True, True, True, True]


def test_an_adapter_that_does_not_fit_leaves_nothing_behind() -> None:
    models = AttachedModels(build_model("llama", vocab_size=259))
    models.give_back(models.attach(adapter_of("lora", 1)))
    damaged = adapter_of("lora", 2)
    damaged.tensors.pop(next(iter(damaged.tensors)))
    with pytest.raises(AdapterError, match="missing"):
        models.attach(damaged)
    models.give_back(models.attach(adapter_of("lora", 3)))
