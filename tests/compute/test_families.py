"""The hot path against transformers and peft, on two-layer random models of every family."""

from __future__ import annotations

import numpy as np
import peft
import pytest
import torch
from transformers import PreTrainedModel

from lamina.compute.ops.attention import packed_attention
from lamina.data.batch import build_batch
from lamina.data.example import EncodedExample
from lamina.losses.cross_entropy import cross_entropy
from lamina.methods.shared.base import Injection
from lamina.structure.head import find_head
from tests.support.hot_path import documents, with_adapter
from tests.support.models_zoo import build_model


def transformers_loss(model: torch.nn.Module, examples: list[EncodedExample]) -> torch.Tensor:
    """Sum of transformers' own loss over documents, one at a time."""
    total = torch.zeros(())
    for example in examples:
        ids = torch.from_numpy(example.input_ids.astype(np.int64))
        labels = torch.where(torch.from_numpy(example.supervised), ids, -100)
        mean = model(input_ids=ids[None], labels=labels[None], use_cache=False).loss
        total = total + mean * example.supervised_tokens
    return total


def packed_loss(model: PreTrainedModel, examples: list[EncodedExample]) -> torch.Tensor:
    with packed_attention(model):
        return cross_entropy(model, find_head(model), build_batch(examples))


def as_peft(injection: Injection, family: str) -> peft.PeftModel:
    """The same adapter on the same base, by HF peft."""
    names = sorted({name.rpartition(".")[2] for name in injection.layers})
    config = peft.LoraConfig(
        r=4, lora_alpha=8, target_modules=names, task_type="CAUSAL_LM", fan_in_fan_out=family == "gpt2"
    )
    model = peft.get_peft_model(build_model(family), config)
    loaded = peft.set_peft_model_state_dict(model, {n: t.detach().clone() for n, t in injection.tensors().items()})
    assert not loaded.unexpected_keys
    return model


def test_base_loss_is_that_of_transformers(family: str) -> None:
    model = build_model(family)
    ours, theirs = packed_loss(model, documents()), transformers_loss(model, documents())
    torch.testing.assert_close(ours, theirs.detach(), rtol=1e-5, atol=1e-4)


def test_head_is_taken_apart(family: str) -> None:
    """Every family takes the fast path; a model whose parts do not add up would silently be slow."""
    assert not find_head(build_model(family)).whole_model


@pytest.mark.parametrize("checkpointing", [False, True])
def test_adapter_loss_and_gradients_are_those_of_peft(family: str, checkpointing: bool) -> None:
    injection = with_adapter(family)
    model = injection.model
    reference = as_peft(injection, family)
    theirs = transformers_loss(reference, documents())
    theirs.backward()
    expected = {
        name.replace(".default", ""): parameter.grad
        for name, parameter in reference.named_parameters()
        if parameter.requires_grad
    }

    model.train()
    if checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
    with packed_attention(model):  # the backward recomputes layers, and must see the same attention
        ours = cross_entropy(model, find_head(model), build_batch(documents()))
        ours.backward()
    torch.testing.assert_close(ours.detach(), theirs.detach(), rtol=1e-5, atol=1e-4)
    tensors = injection.tensors()
    assert tensors.keys() == expected.keys()
    for name, tensor in tensors.items():
        torch.testing.assert_close(tensor.grad, expected[name], rtol=1e-4, atol=1e-4, msg=lambda m, n=name: f"{n}: {m}")


def test_only_the_adapter_gets_gradients(family: str) -> None:
    injection = with_adapter(family)
    packed_loss(injection.model.train(), documents()).backward()
    ours = {id(tensor) for tensor in injection.tensors().values()}
    assert all(tensor.grad is not None and tensor.grad.any() for tensor in injection.tensors().values())
    assert all(p.grad is None for p in injection.model.parameters() if id(p) not in ours)


def test_packed_is_one_at_a_time(family: str) -> None:
    injection = with_adapter(family)
    examples = documents()

    def run(groups: list[list[EncodedExample]]) -> tuple[float, list[torch.Tensor]]:
        for tensor in injection.tensors().values():
            tensor.grad = None
        losses = [packed_loss(injection.model, group) for group in groups]
        torch.stack(losses).sum().backward()
        return sum(loss.item() for loss in losses), [
            t.grad.clone() for t in injection.tensors().values() if t.grad is not None
        ]

    loss_together, grads_together = run([examples])
    loss_apart, grads_apart = run([[example] for example in examples])
    assert loss_together == pytest.approx(loss_apart, rel=1e-6)
    for together, apart in zip(grads_together, grads_apart, strict=True):
        torch.testing.assert_close(together, apart, rtol=1e-4, atol=1e-5)


def test_bf16_loss_is_near_fp32(family: str) -> None:
    exact = packed_loss(with_adapter(family).model, documents())
    rounded = packed_loss(with_adapter(family, torch.bfloat16).model, documents())
    torch.testing.assert_close(rounded, exact, rtol=3e-2, atol=0.0)


def test_own_attention_comes_back() -> None:
    model = build_model("llama")
    before = model.config._attn_implementation
    with packed_attention(model):
        assert model.config._attn_implementation == "lamina_packed"
    assert model.config._attn_implementation == before


def test_a_later_document_does_not_see_an_earlier_one(family: str) -> None:
    model = build_model(family)
    first, second = documents()[:2]
    other = EncodedExample(np.flip(first.input_ids).copy(), first.supervised, 1)
    alone = packed_loss(model, [second])
    for neighbour in (first, other):
        both = packed_loss(model, [neighbour, second]) - packed_loss(model, [neighbour])
        torch.testing.assert_close(both, alone, rtol=1e-4, atol=1e-4)
