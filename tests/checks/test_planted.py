"""Faults planted in real rows are found, and little else is."""

from __future__ import annotations

from pathlib import Path

from benchmarks.data_check import load, measure, plant


def test_planted_faults_are_found(shared_data: Path) -> None:
    figures = measure(plant(load(shared_data / "gsm8k_train.jsonl"), 2000, seed=1))
    print(figures)
    assert {code: item.planted for code, item in figures.items()} == {
        "empty_answer": 20,
        "exact_leak": 20,
        "near_duplicate": 100,
        "near_leak": 20,
        "personal_data": 20,
        "secret": 20,
    }
    for code, item in figures.items():
        assert item.precision >= 0.95, (code, item.wrong)
        assert item.recall >= 0.95, (code, item.missed)
