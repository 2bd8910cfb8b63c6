"""Estimates on paper: limits that need no machine."""

from __future__ import annotations

from dataclasses import replace

import pytest

from lamina.training.plan.scale import MACHINES, Work, estimate, fastest, ulysses_seconds

EIGHT_BILLION = Work(7e9, 1e9, 42e6, 32, 4096, micro_batches=512, activation_bytes=8e9)
SEVENTY = Work(68e9, 2e9, 207e6, 80, 8192, weight_bytes=0.516, tokens=2048, micro_batches=16, activation_bytes=3e9)
H100, PCIE, CONSUMER = MACHINES["h100"], MACHINES["a100-pcie"], MACHINES["4090"]


def test_one_gpu_is_the_measure() -> None:
    alone = estimate(EIGHT_BILLION, H100, "ddp", 1)
    assert alone.efficiency == pytest.approx(1.0)
    assert alone.communication == pytest.approx(0.0)
    assert estimate(EIGHT_BILLION, H100, "fsdp", 1).seconds == alone.seconds


@pytest.mark.parametrize("gpus", [8, 64, 512])
def test_replicas_need_links_only_once_a_step(gpus: int) -> None:
    found = estimate(EIGHT_BILLION, PCIE, "ddp", gpus)
    assert found.efficiency > (0.9 if gpus <= 64 else 0.4)
    assert found.seconds < estimate(EIGHT_BILLION, PCIE, "fsdp", gpus).seconds


def test_gathers_are_hidden_by_fast_links_alone() -> None:
    assert estimate(EIGHT_BILLION, H100, "fsdp", 8).efficiency > 0.95
    assert estimate(EIGHT_BILLION, PCIE, "fsdp", 8).efficiency < 0.5
    quantized = replace(EIGHT_BILLION, weight_bytes=0.516)
    assert estimate(quantized, PCIE, "fsdp", 8).efficiency > 2 * estimate(EIGHT_BILLION, PCIE, "fsdp", 8).efficiency


def test_a_large_base_fits_in_parts() -> None:
    assert not estimate(SEVENTY, CONSUMER, "ddp", 2).fits
    chosen = fastest(SEVENTY, CONSUMER, 2)
    assert chosen.way in ("fsdp", "hybrid")
    assert chosen.memory < estimate(SEVENTY, CONSUMER, "ddp", 2).memory / 1.5


def test_more_gpus_than_micro_batches_do_not_help() -> None:
    few, many = (estimate(EIGHT_BILLION, H100, "ddp", gpus) for gpus in (512, 1024))
    assert many.seconds >= few.seconds


def test_shorter_parts_of_a_document_move_less() -> None:
    assert ulysses_seconds(EIGHT_BILLION, H100, 8) < ulysses_seconds(EIGHT_BILLION, H100, 2)
    assert ulysses_seconds(EIGHT_BILLION, PCIE, 8) > ulysses_seconds(EIGHT_BILLION, H100, 8)
