"""A sample of the matrix of peft's configurations and families (`benchmarks/peft_matrix.py` runs all of it)."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.support.peft_matrix import FAMILIES, Case, all_cases, build_family, run_case

# The fields that a reason names, by words of the reason.
FIELDS_OF_REASONS = {
    "acts only on the tokens after these": "alora_invocation_tokens",
    "adds layers to the base": "layer_replication",
    "removes the smallest singular values": "kasa_config",
    "moved a part of the base's weights into the adapter": "init_lora_weights",
}


def is_true(reason: str, case: Case, adapter: Path) -> bool:
    """Whether a reason for a refusal is true of the adapter."""
    for words, field in FIELDS_OF_REASONS.items():
        if words in reason:
            return f"{field}={case.fields[field]!r}" in reason
    tensors = load_file(adapter / "adapter_model.safetensors")
    if "differs from the base's own" in reason:
        name = reason.split(" its ")[1].split(" differs")[0]
        own = build_family(case.family).state_dict()
        return not tensors[name].equal(own[name.removeprefix("base_model.model.").replace(".base_layer", "")])
    if "gets no such tensor" in reason:
        name = reason.split(" holds ")[1].split(",")[0]
        targets = json.loads((adapter / "adapter_config.json").read_text())["target_modules"]
        module = name.rpartition(".lora_")[0] or name
        return f"base_model.model.{name}" in tensors and not any(module.endswith(target) for target in targets)
    return False


@pytest.mark.slow
@pytest.mark.parametrize("shard", range(4))
def test_peft_and_lamina_agree_on_a_sample(shard: int, tmp_path: Path) -> None:
    sample = random.Random(shard).sample(all_cases(list(FAMILIES)), 200)
    outcomes = []
    for case in sample:
        outcome = run_case(case, tmp_path)
        assert outcome.result not in ("wrong", "crashed"), outcome
        if outcome.result == "refused":
            assert is_true(outcome.why, case, tmp_path / "adapter"), outcome
        outcomes.append(outcome.result)
    assert outcomes.count("refused") < 0.05 * len(outcomes)
    assert outcomes.count("none") < 0.2 * len(outcomes)
