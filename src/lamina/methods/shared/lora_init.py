"""Initializes LoRA's factors A (r, in) and B (out, r).

* true: A uniform in +-1/sqrt(in), which is Kaiming's with a = sqrt(5), B zero (Hu et al. 2021, arXiv:2106.09685).
* gaussian: A normal with deviation 1/r, B zero.
* orthogonal: A and B random, with orthogonal inner spaces, so that B A = 0
  (https://datta0.github.io/posts/rethink-lora-init).
* pissa: s B A is the best approximation of W of rank r: W = U S V^T, A = sqrt(S_r / s) V_r^T, B = U_r sqrt(S_r / s)
  (Meng et al. 2024, arXiv:2404.02948); pissa_niter_N finds it by N subspace iterations.
* olora: B A is the first r columns and rows of W = Q R (Büyükakyüz 2024, arXiv:2406.01775).
* loftq: s B A approximates the quantization error of W (`quantization/loftq.py`), computed when the base is quantized.
  A layer that is not quantized is initialized as with true.
* false: both uniform, as torch initializes a linear layer.

EVA computes A from the data, see `lora_eva.py`; until then it is initialized as with true.
"""

from __future__ import annotations

import torch

from lamina.compute.weights import FrozenLinear
from lamina.errors import ConfigError, Problem
from lamina.machine.seeding import seeded
from lamina.methods.shared.linears import uniform


def initial_factors(
    init: bool | str, frozen: FrozenLinear, r: int, scaling: float, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Initializes A (r, in_features) and B (out_features, r), float32, on the weight's device.

    Random numbers are drawn on the CPU, so that a seed gives the same adapter for every device.

    Args:
        init: The value of `init_lora_weights`.
        frozen: The base layer.
        r: Rank.
        scaling: s, which PiSSA divides by.
        generator: Generator on the CPU.

    Raises:
        ConfigError: `init` is loftq, but the base was not quantized with LoftQ.
    """
    inputs, outputs, device = frozen.in_features, frozen.out_features, frozen.base.weight.device
    if isinstance(init, str) and init.startswith("pissa"):
        A, B = _pissa(init, frozen.weight(torch.float32), r, scaling, generator)
    elif init == "loftq" and not frozen.is_exact:
        A, B = _correction(frozen)
    elif init == "olora":
        Q, R = torch.linalg.qr(frozen.weight(torch.float32))
        A, B = R[:r], Q[:, :r]
    elif init == "orthogonal":
        Q, _ = torch.linalg.qr(torch.randn(r, r, generator=generator))
        A = (torch.randn(inputs, r // 2, generator=generator) @ Q[0::2]).T / 10.0
        B = torch.randn(r // 2, outputs, generator=generator).T @ Q[1::2] / 10.0
    elif init == "gaussian":
        A, B = torch.randn(r, inputs, generator=generator) / r, torch.zeros(outputs, r)
    else:
        A = uniform((r, inputs), generator)
        B = torch.zeros(outputs, r) if init else uniform((outputs, r), generator)
    return A.to(device).contiguous(), B.to(device).contiguous()


def _correction(frozen: FrozenLinear) -> tuple[torch.Tensor, torch.Tensor]:
    factors = frozen.correction()
    if factors is None:
        message = (
            "'loftq' needs the factors from quantizing the base with LoftQ, but the base was quantized without it."
        )
        raise ConfigError(Problem("method.init_lora_weights", message, "load the base with its quantization"))
    return factors


def _pissa(
    init: str, weight: torch.Tensor, r: int, scaling: float, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    _, _, iterations = init.partition("_niter_")
    if iterations:
        seed = int(torch.randint(2**31, (), generator=generator))
        # svd_lowrank draws its start from torch's global generator.
        with seeded(seed, weight.device):
            U, S, V = torch.svd_lowrank(weight, r, niter=int(iterations))
        Vh = V.T
    else:
        U, S, Vh = torch.linalg.svd(weight, full_matrices=False)
    root = (S[:r] / scaling).sqrt()
    return root[:, None] * Vh[:r], U[:, :r] * root
