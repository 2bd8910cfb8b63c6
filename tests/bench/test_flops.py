"""Operations of a step: by hand, against torch's own counter, and against a count of every pair of tokens."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedModel

from lamina.bench.flops import ModelUse, model_use, visible_pairs
from lamina.bench.gemm import Rates, measure_rates
from lamina.compute.ops.attention import packed_attention
from lamina.config.methods.lora import LoraConfig
from lamina.data.batch import build_batch
from lamina.losses.cross_entropy import cross_entropy
from lamina.methods.shared.base import inject
from lamina.structure.head import find_head
from tests.support.bench import LENGTHS, examples
from tests.support.hot_path import without_padded_chunks

RANK = 4
METHOD = LoraConfig(r=RANK, lora_alpha=8)


def addmm_in_place(into: torch.Size, left: torch.Size, right: torch.Size, **unused: Any) -> int:
    """y += a b, which torch's counter does not know by itself."""
    return 2 * left[0] * left[1] * right[1]


IN_PLACE: dict[Any, Any] = {torch.ops.aten.addmm_: addmm_in_place}


@pytest.fixture(scope="module")
def use(model_folder: Path) -> ModelUse:
    return model_use(model_folder, METHOD)


def test_operations_of_a_small_llama_by_hand(use: ModelUse) -> None:
    tokens, supervised, lengths = 80, 13, [30, 50]
    hidden, inner, keys, vocabulary = 48, 80, 16, use.vocabulary
    q_and_o, k_and_v, mlp = 2 * hidden * hidden, 2 * hidden * keys, 3 * hidden * inner
    flops = use.step(lengths, supervised)
    assert flops.frozen_forward == 2 * tokens * 2 * (q_and_o + k_and_v + mlp)
    # q, k and v of the first layer have only the frozen embedding below them.
    assert flops.frozen_backward == flops.frozen_forward - 2 * tokens * (hidden * hidden + k_and_v)
    widths_in = 2 * hidden + 2 * hidden + 2 * hidden + inner  # q and o, k and v, gate and up, down
    widths_out = 2 * hidden + 2 * keys + 2 * inner + hidden
    adapter = 2 * (3 * widths_in + 3 * widths_out) - 3 * hidden
    assert flops.adapter == 2 * tokens * RANK * adapter
    pairs = 30 * 31 // 2 + 50 * 51 // 2
    assert flops.attention == 2 * 6 * (2 * pairs * 6 * 8)
    assert flops.head == 2 * 2 * supervised * hidden * vocabulary
    assert flops.total == sum(vars(flops).values())


@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma3", "gpt2"])
def test_products_are_those_that_a_training_step_makes(
    name: str, tiny: Callable[[str], PreTrainedModel], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch counts `mm` and `addmm` as they are run; attention runs as batched products, which are not compared."""
    monkeypatch.setattr("lamina.compute.fusion.inputs.repeating_size", lambda size: size)  # nothing but the documents
    without_padded_chunks(monkeypatch)
    model = tiny(name)
    model.save_pretrained(tmp_path)
    head = find_head(model)
    inject(model, METHOD, seed=0)
    batch = build_batch(examples(LENGTHS[0]))
    model.train()
    with packed_attention(model), FlopCounterMode(display=False, custom_mapping=IN_PLACE) as counter:
        cross_entropy(model, head, batch).backward()
    counted = {str(operator): flops for operator, flops in counter.get_flop_counts()["Global"].items()}
    flops = model_use(tmp_path, METHOD).step(batch.document_lengths, batch.supervised_tokens)
    products = sum(flops for operator, flops in counted.items() if operator in ("aten.mm", "aten.addmm", "aten.addmm_"))
    assert flops.total - flops.attention == products


def test_sliding_layers_are_told_from_full_ones(tiny: Callable[[str], PreTrainedModel], tmp_path: Path) -> None:
    tiny("gemma3").save_pretrained(tmp_path)
    assert {attention.window for attention in model_use(tmp_path, METHOD).attention} == {12}


@pytest.mark.parametrize("window", [None, 1, 3, 7, 20])
def test_visible_pairs(window: int | None) -> None:
    pairs = [(q, k) for q in range(7) for k in range(q + 1) if window is None or q - k < window]
    assert visible_pairs(7, window) == len(pairs)


def test_only_adapted_layers_and_what_lies_above_them_need_a_gradient(model_folder: Path) -> None:
    use = model_use(model_folder, LoraConfig(r=RANK, target_modules=r".*\.layers\.1\.mlp\.down_proj"))
    assert sum(count for linear, count in use.linears.items() if linear.adapted) == 1
    flops = use.step([20], 5)
    assert flops.frozen_backward == 0
    assert flops.attention == 2 * (2 * 210 * 6 * 8) * 2  # two layers, forward only


def test_limit_is_each_shapes_operations_at_its_own_rate(use: ModelUse) -> None:
    lengths, supervised = [30, 50], 13
    shapes = {(linear.in_features, linear.out_features) for linear in use.linears}
    flops = use.step(lengths, supervised)
    even = Rates(dict.fromkeys(shapes, 2e6), dict.fromkeys(shapes, 2e6), 2e6, 2e6)
    assert even.limit_seconds(use, lengths, supervised) == pytest.approx(flops.total / 2e6)
    slow_head = Rates(dict.fromkeys(shapes, 2e6), dict.fromkeys(shapes, 1e6), 5e5, 2e6)
    products = flops.frozen_forward / 2e6 + flops.frozen_backward / 1e6 + flops.head / 2 / 5e5 + flops.head / 2 / 2e6
    rest = (flops.adapter + flops.attention) * products
    rest /= flops.frozen_forward + flops.frozen_backward + flops.head
    assert slow_head.limit_seconds(use, lengths, supervised) == pytest.approx(products + rest)


def test_rates_are_measured_for_every_shape(use: ModelUse) -> None:
    rates = measure_rates(use, 64, 16, torch.float32, torch.device("cpu"))
    assert rates.forward.keys() == rates.backward.keys() == {(48, 48), (48, 16), (48, 80), (80, 48)}
    assert all(rate > 0 for rate in (*rates.forward.values(), *rates.backward.values(), rates.head_backward))
