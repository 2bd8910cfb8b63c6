"""The limit of a step: what must be read and multiplied is counted from the model's shapes."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from lamina.bench.serving.job import AdapterFacts
from lamina.bench.serving.limit import (
    AdapterWork,
    Rates,
    StepLimit,
    StepWork,
    adapter_work,
    mean_positions,
    measure_machine,
    step_limit,
    step_work,
)
from tests.support.serving_bench import window


@pytest.fixture(scope="module")
def work(model_folder: Path) -> StepWork:
    return step_work(model_folder, "bfloat16")


def adapter(parameters: int, virtual_tokens: int = 0) -> AdapterFacts:
    return AdapterFacts("a", "a", "lora", 4, parameters, virtual_tokens)


def test_what_a_step_must_read(work: StepWork, model_folder: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(model_folder)
    config = model.config
    layers = sum(p.numel() for name, p in model.named_parameters() if "proj" in name)
    head = config.vocab_size * config.hidden_size
    assert work.weight_bytes == 2 * (layers + head)
    assert work.row_operations == 2 * (layers + head)
    assert work.cache_bytes == config.num_hidden_layers * 2 * config.num_key_value_heads * config.head_dim * 2
    assert work.attention_operations == 2 * config.num_hidden_layers * 2 * config.num_attention_heads * config.head_dim
    assert step_work(model_folder, "float32").weight_bytes == 2 * work.weight_bytes


def test_the_limit_is_the_longer_of_the_two(work: StepWork) -> None:
    slow_memory = step_limit(work, AdapterWork(), Rates(1e6, 1e15), 4, 10.0)
    assert slow_memory.read_seconds == pytest.approx((work.weight_bytes + 4 * 10 * work.cache_bytes) / 1e6)
    assert slow_memory.tokens_per_second == pytest.approx(4 / slow_memory.read_seconds)
    slow_products = step_limit(work, AdapterWork(), Rates(1e15, 1e6), 4, 10.0)
    operations = 4 * (work.row_operations + 10 * work.attention_operations)
    assert slow_products.product_seconds == pytest.approx(operations / 1e6)
    assert slow_products.tokens_per_second == pytest.approx(4 / slow_products.product_seconds)
    assert StepLimit(0.02, 0.01, 2).tokens_per_second == 100


def test_adapters_add_to_it(work: StepWork) -> None:
    assert adapter_work([], 8, "bfloat16") == AdapterWork()
    mixed = [adapter(1000), adapter(0, virtual_tokens=8)]
    added = adapter_work(mixed, 8, "bfloat16")
    assert added == AdapterWork(read_bytes=2 * 500 * 2, row_operations=1000.0, positions=4)
    assert adapter_work(mixed, 1, "float32").read_bytes == 500 * 4
    rates = Rates(1e9, 1e9)
    assert step_limit(work, added, rates, 8, 10.0).tokens_per_second < (
        step_limit(work, AdapterWork(), rates, 8, 10.0).tokens_per_second
    )


def test_positions_are_those_of_the_middle_of_an_answer() -> None:
    assert mean_positions(window(1.0)) == 10 + 5 / 2


def test_rates_are_measured(work: StepWork) -> None:
    rates = measure_machine(work, "float32", buffer_bytes=2**22)
    assert 1e8 < rates.read < 1e13
    assert 1e7 < rates.products < 1e16
