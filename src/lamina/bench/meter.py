"""Measures every side: time, loss and memory of each step, and the machine's speed between steps."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import psutil
import torch
from torch import nn

from lamina.bench.flops import ModelUse
from lamina.bench.gemm import Rates, measure_rates, synchronize
from lamina.bench.job import Job, SideRun, Step
from lamina.machine.hardware import DTYPES
from lamina.machine.memory import current_bytes, peak_bytes

# Elements of four bytes in a page of 4 KiB; with two-byte elements this stride reads every page twice.
_PAGE_ELEMENTS = 1024


class Meter:
    """Measures one process of one side.

    A side calls `loaded` once, then `begin` and `end` around every step. What happens between `end` and the next
    `begin` is not timed.
    """

    def __init__(self, job: Job, use: ModelUse, device: torch.device) -> None:
        """
        Args:
            job: What is measured.
            use: The model's shapes.
            device: Where the model will be.
        """
        self.device = device
        self._job = job
        self._use = use
        self._steps: list[Step] = []
        self._loaded_bytes = 0
        self._began = 0.0
        self._others_began = 0.0
        self._rates: Rates | None = None

    def loaded(self, model: nn.Module) -> None:
        """Must be called once model, adapter and optimizer exist.

        Weights are memory-mapped and loaded when they are first read. So every page is read here; otherwise the
        measured memory would depend on how much a side happened to have read.
        """
        for tensor in model.parameters():
            tensor.detach().flatten()[::_PAGE_ELEMENTS].sum()
        self._loaded_bytes = current_bytes(self.device)

    def begin(self) -> None:
        """Starts a step; the side makes its batch next."""
        synchronize(self.device)
        self._others_began = _cpu_seconds_of_others()
        self._began = time.perf_counter()

    def end(self, loss: float, lengths: Sequence[int], supervised: int) -> None:
        """Ends a step, after its update.

        Args:
            loss: Mean loss over its supervised tokens.
            lengths: Real tokens of each of its documents.
            supervised: Tokens in the loss.
        """
        synchronize(self.device)
        seconds = time.perf_counter() - self._began
        others = max(0.0, _cpu_seconds_of_others() - self._others_began) / seconds
        number, before, limit = len(self._steps), self._rates, None
        if number + 1 >= self._job.warmup:  # also after the last warm-up step, for the step that follows
            self._rates = measure_rates(self._use, sum(lengths), supervised, DTYPES[self._job.dtype], self.device)
        if number >= self._job.warmup:
            assert self._rates is not None
            around = [rates for rates in (before, self._rates) if rates is not None]
            limit = sum(rates.limit_seconds(self._use, lengths, supervised) for rates in around) / len(around)
        flops = self._use.step(lengths, supervised)
        self._steps.append(Step(seconds, loss, sum(lengths), supervised, flops, limit, others))

    def result(self, settings: dict[str, Any]) -> SideRun:
        """Returns all measurements."""
        return SideRun(
            side=self._job.side,
            settings=settings,
            warmup=self._job.warmup,
            steps=self._steps,
            loaded_bytes=self._loaded_bytes,
            # The kernel counts the two with different haste; the peak is never less.
            peak_bytes=max(peak_bytes(self.device), self._loaded_bytes),
        )


def _cpu_seconds_of_others() -> float:
    """Returns the CPU time that all other processes have used so far."""
    busy = psutil.cpu_times()
    return busy.user + busy.system - time.process_time()
