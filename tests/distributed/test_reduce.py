"""Sums of gradients are the same to the bit in any order and over any number of processes."""

from __future__ import annotations

import random

import numpy as np
import torch
from torch import nn

from lamina.distributed.reduce import GradientSum, digest_of
from lamina.distributed.world import ALONE
from tests.support.ranks import run_ranks, values_of

COUNT = 8


def gradients(seed: int) -> list[torch.Tensor]:
    """Those of a micro-batch, of sizes that differ by up to 2^16."""
    rng = np.random.default_rng(seed)
    scale = 2.0 ** rng.integers(-8, 8, (30, 7))
    return [torch.from_numpy(rng.standard_normal((30, 7)) * scale).float(), torch.full((3,), 1e-3 * seed)]


def parameters() -> list[nn.Parameter]:
    return [nn.Parameter(torch.zeros(30, 7)), nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(2))]


def taken(total: GradientSum, tensors: list[nn.Parameter], seeds: list[int]) -> None:
    for seed in seeds:
        for tensor, gradient in zip(tensors, gradients(seed), strict=False):
            tensor.grad = gradient.clone()
        total.take()


def summed(order: list[int]) -> list[torch.Tensor | None]:
    tensors = parameters()
    total = GradientSum(tensors)
    taken(total, tensors, order)
    total.put_back(ALONE, total.touched)
    return [tensor.grad for tensor in tensors]


def test_any_order_gives_the_same_bits() -> None:
    rng = random.Random(0)
    first = summed(list(range(COUNT)))
    for _ in range(20):
        again = summed(rng.sample(range(COUNT), COUNT))
        for one, other in zip(first[:2], again[:2], strict=True):
            assert one is not None
            assert other is not None
            assert torch.equal(one, other)


def test_it_is_the_sum_rounded_once() -> None:
    got = summed(list(range(COUNT)))[0]
    exact = torch.stack([gradients(seed)[0].double() for seed in range(COUNT)]).sum(0)
    assert got is not None
    assert torch.equal(got, exact.float())


def test_what_got_no_gradient_keeps_none() -> None:
    assert summed([1])[2] is None


def test_processes_share_the_sum() -> None:
    expected = summed(list(range(COUNT)))

    def work(world) -> tuple[list[torch.Tensor | None], bool]:
        tensors = parameters()
        total = GradientSum(tensors)
        taken(total, tensors, [place for place in range(COUNT) if place % 3 == world.rank])
        flags = world.gather(total.touched, "the flags")
        total.put_back(world, [any(each) for each in zip(*flags, strict=True)])
        return [tensor.grad for tensor in tensors], total.is_finite()

    for found, finite in values_of(run_ranks(3, work)):
        assert finite
        assert found[2] is None
        for one, other in zip(found[:2], expected[:2], strict=True):
            assert torch.equal(one, other)


def test_a_sum_that_is_not_finite_is_noticed() -> None:
    tensors = parameters()
    total = GradientSum(tensors)
    assert total.is_finite()
    tensors[1].grad = torch.tensor([1.0, float("inf"), 0.0])
    total.take()
    assert not total.is_finite()


def test_a_digest_tells_replicas_apart() -> None:
    one = {"a": torch.zeros(3, dtype=torch.bfloat16), "b": torch.ones(())}
    other = {name: tensor.clone() for name, tensor in one.items()}
    assert digest_of(one) == digest_of(other)
    other["b"] += 1e-6
    assert digest_of(one) != digest_of(other)
