"""The measure of rounding: about as large as rounding is, and gone when its block ends."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from lamina.adapters.moved import with_rounding_moved
from lamina.verification.report import Check, Measure
from lamina.verification.rounding import Gradient, rounding_noise


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_moves_by_about_one_rounding_forward_and_backward(dtype: torch.dtype) -> None:
    linear = nn.Linear(64, 48).to(dtype)
    x = torch.randn(200, 64).to(dtype).requires_grad_()
    grad = torch.randn(200, 48).to(dtype)

    def run() -> tuple[torch.Tensor, torch.Tensor]:
        y = linear(x)
        return y.detach().float(), torch.autograd.grad(y, x, grad)[0].float()

    plain = run()
    with with_rounding_moved(linear, seed=0):
        moved = run()
    again = run()
    rounding = torch.finfo(dtype).eps / 2
    for a, b, c in zip(plain, moved, again, strict=True):
        relative = float((a - b).norm() / a.norm())
        # Sums in float32 add roundings of their own: up to about the square root of their length.
        assert 0.2 * rounding < relative < (3 if dtype == torch.bfloat16 else 12) * rounding
        assert torch.equal(a, c)


def gradient(loss: float, **tensors: list[float]) -> Gradient:
    return Gradient([loss], {name: torch.tensor(values) for name, values in tensors.items()})


def test_measures_say_which_tensor_is_worst() -> None:
    plain = gradient(2.0, a=[3.0, 4.0], b=[1.0, 0.0])
    noise = rounding_noise(plain, gradient(2.02, a=[3.0, 4.05], b=[1.0, 0.02]), torch.bfloat16)
    assert (noise.loss, noise.worst) == (pytest.approx(0.01), pytest.approx(0.02))
    measures = noise.measures(gradient(2.0, a=[3.0, 4.0], b=[1.0, 0.05]), plain)
    check = Check.of("name", "compared", measures)
    assert (check.worst, check.passed) == ("gradient of b", False)
    assert check.difference == pytest.approx(0.05)
    assert check.tolerance == pytest.approx(0.04, rel=1e-3)


def test_a_tensor_that_is_next_to_nothing_is_measured_against_the_rest() -> None:
    plain = gradient(1.0, a=[1.0], b=[1e-9])
    noise = rounding_noise(plain, gradient(1.0, a=[1.0], b=[-1e-9]), torch.float32)
    assert noise.worst == pytest.approx(2e-6)


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_what_is_not_finite_fails_and_is_null_in_json(wrong: float) -> None:
    plain = gradient(1.0, a=[1.0], b=[1.0])
    noise = rounding_noise(plain, plain, torch.float32)
    check = Check.of("name", "compared", noise.measures(gradient(1.0, a=[wrong], b=[1.0]), plain))
    assert check.passed is False
    assert check.as_json()["difference"] is None


def test_zero_tolerance() -> None:
    assert Measure("", 0.0, 0.0, "").passed
    assert not Measure("", 1e-45, 0.0, "").passed
    assert Measure("", 1e-45, 0.0, "").severity == math.inf


def test_a_loss_that_one_draw_left_where_it_was_has_the_noise_of_all_draws() -> None:
    plain = gradient(2.0, a=[1.0])
    noise = rounding_noise(plain, gradient(2.0, a=[1.0]), torch.bfloat16, [[2.06], [1.98], [2.0]])
    assert noise.loss == pytest.approx(((0.06**2 + 0.02**2) / 4) ** 0.5 / 2.0)
