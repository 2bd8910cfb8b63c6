"""Values of other libraries: a map of devices."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lamina.dialects.hints import hint_for
from lamina.dialects.outcome import Missing, Nothing, Set
from lamina.dialects.values import device_map


@pytest.mark.parametrize(
    ("given", "device"),
    [
        ("cpu", "cpu"),
        ("cuda:1", "cuda:1"),
        (0, "cuda:0"),
        ("0", "cuda:0"),
        ({"": 1}, "cuda:1"),
        ({"": "cpu"}, "cpu"),
        (torch.device("cuda", 1), "cuda:1"),
        ({"model.layers": 0, "lm_head": 0}, "cuda:0"),
    ],
    ids=repr,
)
def test_a_map_to_one_device_is_that_device(given: Any, device: str) -> None:
    assert device_map(given) == Set({"device": device})


@pytest.mark.parametrize("given", ["auto", "balanced", "sequential", {"a": 0, "b": 1}, {"a": 0, "b": "disk"}], ids=repr)
def test_a_map_to_several_says_the_way(given: Any) -> None:
    outcome = device_map(given)
    assert isinstance(outcome, Nothing if isinstance(given, str) else Missing)
    assert "--nproc auto" in outcome.reason


@pytest.mark.parametrize("field", ["device_map", "quantization.device_map", "max_memory"])
def test_the_hint_for_the_key_names_the_way(field: str) -> None:
    assert "--nproc auto" in hint_for(field, "auto")
