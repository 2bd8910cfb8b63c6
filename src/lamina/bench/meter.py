"""The stop-watch that every side carries: time, loss and memory of each step, and the machine's rate between steps."""

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

# A page of 4 KiB holds so many elements of four bytes; of two-byte elements every second one of these is in a new page.
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
        """To be called once model, adapter and optimizer are there.

        Weights are mapped from their file and come into memory when they are first read, so each page is read here:
        otherwise this figure would say how far a side happened to have read.
        """
        for tensor in model.parameters():
            tensor.detach().flatten()[::_PAGE_ELEMENTS].sum()
        self._loaded_bytes = current_bytes(self.device)

    def begin(self) -> None:
        """A step begins: the next thing is to make its batch."""
        synchronize(self.device)
        self._others_began = _cpu_seconds_of_others()
        self._began = time.perf_counter()

    def end(self, loss: float, lengths: Sequence[int], supervised: int) -> None:
        """The step is done, its update included.

        Args:
            loss: Mean over its supervised tokens.
            lengths: Real tokens of each document in it.
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
        """Everything measured."""
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
    """Processor time that everything but this process has used so far."""
    busy = psutil.cpu_times()
    return busy.user + busy.system - time.process_time()
