"""Sizes repeat, and what fills a batch up to one changes nothing."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from lamina.compute.ops.attention import packed_attention
from lamina.compute.ops.log_probs import chunked_log_probs
from lamina.compute.ops.shapes import repeating_size
from lamina.data.batch import build_batch
from lamina.data.example import EncodedExample
from lamina.losses.cross_entropy import cross_entropy
from lamina.structure.head import LogitTransform, find_head
from tests.support.hot_path import without_padded_chunks
from tests.support.models_zoo import build_model


def test_few_sizes_and_little_more() -> None:
    sizes = {size: repeating_size(size) for size in range(1, 4097)}
    assert all(size <= larger <= size * 17 / 16 for size, larger in sizes.items())
    assert len({sizes[size] for size in range(1024, 2049)}) == 17
    assert all(repeating_size(larger) == larger for larger in sizes.values())


@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2"])
def test_filler_changes_neither_loss_nor_gradient(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    documents = [
        EncodedExample(rng.integers(3, 150, length, dtype=np.int32), np.arange(length) > 2, row=1)
        for length in (29, 7, 31)
    ]
    batch = build_batch(documents)
    assert repeating_size(batch.tokens) > batch.tokens

    def loss_and_gradients() -> tuple[torch.Tensor, list[torch.Tensor]]:
        model = build_model(family).train().requires_grad_(True)
        head, seen = find_head(model), []
        head.decoder.register_forward_pre_hook(
            lambda module, args, kwargs: seen.append(kwargs["input_ids"].shape[1]), with_kwargs=True
        )
        with packed_attention(model):
            loss = cross_entropy(model, head, batch)
            loss.backward()
        lengths.append(seen[-1])
        return loss.detach(), [p.grad for p in model.parameters() if p.grad is not None]

    lengths: list[int] = []
    filled = loss_and_gradients()
    monkeypatch.setattr("lamina.compute.fusion.inputs.repeating_size", lambda size: size)
    without_padded_chunks(monkeypatch)
    bare = loss_and_gradients()
    assert lengths == [repeating_size(batch.tokens), batch.tokens]
    torch.testing.assert_close(filled, bare, rtol=1e-4, atol=1e-5)


def test_a_filled_chunk_of_the_head(monkeypatch: pytest.MonkeyPatch) -> None:
    linear = torch.nn.Linear(24, 60).requires_grad_(False)
    targets = torch.randint(0, 60, (101,))

    def run() -> tuple[torch.Tensor, torch.Tensor]:
        hidden = torch.linspace(-1, 1, 101 * 24).reshape(101, 24).requires_grad_()
        loss = -chunked_log_probs(hidden, targets, linear, LogitTransform(), chunk_elements=60 * 64).sum()
        loss.backward()
        assert hidden.grad is not None
        return loss.detach(), hidden.grad

    filled = run()
    without_padded_chunks(monkeypatch)
    torch.testing.assert_close(filled, run())


class _Shapes(TorchDispatchMode):
    """Remembers the shapes of all matrix products."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[tuple[Any, ...]] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm):
            self.seen.add(tuple(tuple(x.shape) for x in args if isinstance(x, torch.Tensor)))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("head_is_trained", [False, True])
def test_products_of_many_steps_have_few_shapes(head_is_trained: bool) -> None:
    """Rows of 40 to 100 tokens, packed to 2,048: each shape costs time once, and memory for good."""
    rng = np.random.default_rng(0)
    model = build_model("llama").train()
    head, shapes, after = find_head(model), _Shapes(), []
    (model.get_output_embeddings() if head_is_trained else model.model.layers[0].self_attn.q_proj).requires_grad_(True)
    with packed_attention(model), shapes:
        for _ in range(30):
            lengths = rng.integers(40, 101, 60)
            lengths = lengths[: int(np.searchsorted(lengths.cumsum(), 2048))]
            documents = [
                EncodedExample(rng.integers(3, 150, n, dtype=np.int32), np.arange(n) >= rng.integers(1, n), row=1)
                for n in lengths
            ]
            cross_entropy(model, head, build_batch(documents)).backward()
            after.append(len(shapes.seen))
    # Two numbers of tokens and seven of rows of the head, at some ten products forward and backward.
    assert after[-1] <= 75, after
    assert after[-1] - after[14] <= 12, after
