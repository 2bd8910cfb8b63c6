"""What vLLM does not serve is said before it is loaded, with a way that works."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lamina.adapters.adapter import Adapter, read_adapter
from lamina.config import METHOD_CONFIGS
from lamina.errors import AdapterError
from lamina.server.vllm.limits import check_limits, rank_of, refusals, served_rank


@pytest.fixture(scope="module")
def adapter(written: dict[str, Path]) -> Adapter:
    return read_adapter(written["one"])


def changed(adapter: Adapter, **fields: Any) -> Adapter:
    return replace(adapter, peft_config={**adapter.peft_config, **fields})


def test_plain_lora_is_served(adapter: Adapter) -> None:
    for fields in (
        {},
        {"use_rslora": True},
        {"init_lora_weights": "gaussian"},
        {"init_lora_weights": "eva"},
        {"rank_pattern": {"q_proj": 16}},
        {"modules_to_save": []},
    ):
        assert refusals(changed(adapter, **fields), 16) == []
        check_limits(changed(adapter, **fields), 16)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"use_dora": True}, "DoRA"),
        ({"bias": "all"}, "trains biases"),
        ({"lora_bias": True}, "trains biases"),
        ({"modules_to_save": ["lm_head"]}, r"modules_to_save \(lm_head\)"),
        ({"trainable_token_indices": [1]}, "rows of the embedding"),
        ({"target_parameters": ["a"]}, "target_parameters"),
        ({"init_lora_weights": "pissa"}, "'pissa' shifted"),
        ({"alora_invocation_tokens": [1]}, "uses alora_invocation_tokens"),
        ({"r": 1024}, "its rank is 1024, and the servers take 512"),
    ],
)
def test_what_is_refused_can_be_merged_or_served_by_lamina(adapter: Adapter, fields: Any, reason: str) -> None:
    with pytest.raises(
        AdapterError, match=rf"vLLM does not serve it: .*{reason}.*Fix: merge it \(lamina merge "
    ) as caught:
        check_limits(changed(adapter, **fields))
    assert "--engine lamina" in str(caught.value)


def test_a_rank_above_the_servers_has_a_setting(adapter: Adapter) -> None:
    with pytest.raises(
        AdapterError, match=r"its rank is 20, and the servers take 16.*Fix: start vLLM with --vllm-arg="
    ):
        check_limits(changed(adapter, rank_pattern={"q_proj": 20}), 16)
    assert rank_of({"r": 4, "rank_pattern": {"q_proj": 20}}) == 20 and rank_of({}) == 0
    assert [served_rank(rank) for rank in (1, 2, 8, 9, 65, 512, 600)] == [1, 8, 8, 16, 128, 512, 512]


def test_other_methods_are_named(adapter: Adapter) -> None:
    ia3 = replace(changed(adapter, peft_type="IA3"), config=METHOD_CONFIGS["ia3"](type="ia3"))
    with pytest.raises(AdapterError, match=r"it is IA.*, and vLLM serves LoRA alone.*Fix: merge it"):
        check_limits(ia3)
    prefix = replace(
        changed(adapter, peft_type="PREFIX_TUNING"), config=METHOD_CONFIGS["prefix_tuning"](type="prefix_tuning")
    )
    with pytest.raises(AdapterError, match="Fix: serve it with lamina's own engine") as caught:
        check_limits(prefix)
    assert "merge" not in str(caught.value)
