"""Moments stored by bitsandbytes: in 8 bits, or in memory that is paged between GPU and CPU.

Dettmers et al. 2021, "8-bit Optimizers via Block-wise Quantization", arXiv:2110.02861: 256 values share one float32
scale, and the 256 levels are denser near zero. Only the functional interface is used, on our own tensors, so that the
state consists of plain tensors. Among the optimizers, only this file imports the package.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch

from lamina.config import TrainConfig
from lamina.optim._adamw import FloatMoments, Moments, MomentsAdamW, State, Update
from lamina.packages import needed_package

BLOCK = 256

# Smaller tensors keep float32 moments, as in bitsandbytes' own optimizers: norms and biases are few and sensitive.
SMALLEST_8BIT = 4096

# Smaller buffers are not paged, also as in bitsandbytes.
SMALLEST_PAGED = 100_000


def bitsandbytes(optim: str) -> ModuleType:
    """Imports `bitsandbytes.functional`.

    Raises:
        ConfigError: The package is not installed.
    """
    return needed_package("bitsandbytes.functional", optim, "train.optim", "bnb")


def build_adamw(config: TrainConfig, groups: list[dict[str, Any]], moments: Moments) -> MomentsAdamW:
    """Builds AdamW with the settings of `config`."""
    return MomentsAdamW(groups, config.peak_learning_rate, config.betas(), config.epsilon, moments)


class BnbMoments(Moments):
    """Moments in 8 or 32 bits, in the device's memory or paged."""

    def __init__(self, functional: ModuleType, bits: int, paged: bool = False) -> None:
        self._functional = functional
        self._bits = bits
        self._paged = paged
        self._floats = FloatMoments()
        self._levels: dict[torch.device, tuple[torch.Tensor, torch.Tensor]] = {}

    def move_(self, target: torch.Tensor, grad: torch.Tensor, state: State, update: Update) -> None:
        if self._bits == 8 and target.numel() < SMALLEST_8BIT:
            self._floats.move_(target, grad, state, update)
            return
        self._allocate(target, state)
        (beta1, beta2), step, lr = update.betas, update.step, update.lr
        mean, square, grad = state["state1"], state["state2"], grad.contiguous()
        if self._bits == 32:
            self._functional.optimizer_update_32bit(
                "adam", grad, target, mean, beta1, update.eps, step, lr, square, beta2, weight_decay=update.weight_decay
            )
            return
        self._functional.optimizer_update_8bit_blockwise(
            "adam",
            grad,
            target,
            mean,
            square,
            beta1,
            beta2,
            0.0,  # beta3 and alpha, which only AdEMAMix uses
            0.0,
            update.eps,
            step,
            lr,
            *self._levels_on(target.device),
            state["absmax1"],
            state["absmax2"],
            update.weight_decay,
        )

    def read(self, state: State) -> tuple[torch.Tensor, torch.Tensor]:
        if "exp_avg" in state:
            return self._floats.read(state)
        assert self._bits == 8 and not self._paged
        levels = self._levels_on(state["state1"].device)
        mean, square = (
            self._functional.dequantize_blockwise(
                state[f"state{i}"], absmax=state[f"absmax{i}"], code=levels[i - 1], blocksize=BLOCK
            )
            for i in (1, 2)
        )
        return mean, square

    def write(self, state: State, mean: torch.Tensor, square: torch.Tensor) -> None:
        if "exp_avg" in state:
            self._floats.write(state, mean, square)
            return
        levels = self._levels_on(mean.device)
        for i, moment in enumerate((mean, square), start=1):
            stored, scales = self._functional.quantize_blockwise(
                moment.contiguous(), code=levels[i - 1], blocksize=BLOCK
            )
            state[f"state{i}"], state[f"absmax{i}"] = stored, scales.absmax

    def settle(self) -> None:
        if self._paged:  # kernels may still run, and the CPU may read this memory next
            torch.cuda.synchronize()

    def _allocate(self, target: torch.Tensor, state: State) -> None:
        dtype = torch.uint8 if self._bits == 8 else torch.float32
        paged = self._paged and target.numel() >= SMALLEST_PAGED
        for name in ("state1", "state2"):
            if name not in state:
                state[name] = torch.zeros_like(target, dtype=dtype, memory_format=torch.contiguous_format)
            # For torch, paged memory is CPU memory; a resumed run restores its state on the device.
            if paged and state[name].is_cuda:
                page = self._functional.get_paged(*target.shape, dtype=dtype, device=target.device)
                state[name] = page.copy_(state[name])
            if paged:
                self._functional.prefetch_tensor(state[name])
        if self._bits == 8 and "absmax1" not in state:
            blocks = -(-target.numel() // BLOCK)
            for name in ("absmax1", "absmax2"):
                state[name] = torch.zeros(blocks, dtype=torch.float32, device=target.device)

    def _levels_on(self, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the 256 levels of the mean (signed) and of the square (unsigned)."""
        if device not in self._levels:
            maps = [self._functional.create_dynamic_map(signed=signed).to(device) for signed in (True, False)]
            self._levels[device] = (maps[0], maps[1])
        return self._levels[device]
