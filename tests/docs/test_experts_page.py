"""The families' table of docs/experts.md is what lamina does with a tiny model of each."""

from __future__ import annotations

from pathlib import Path

import pytest

from lamina.compute.ops.experts import read_experts
from lamina.config.methods.lora import LoraConfig
from lamina.methods.shared.lora_targets import choose
from lamina.models.weights import inside_layer, matrices
from tests.support.architectures import MIXTURES, build_architecture

PAGE = Path(__file__).parents[2] / "docs" / "experts.md"
FAMILIES = [name for name in [*MIXTURES, "lfm2_moe"] if name != "nemotron_h"]  # whose tiny model has no experts


def row_of(architecture: str) -> str:
    """A family's row."""
    model = build_architecture(architecture, weights=False)
    inside = dict.fromkeys(inside_layer(name) for name in matrices(model) if "embed" not in name)
    names = [name for name in inside if any(part in name for part in ("experts", "router", "gate", "_linear"))]
    names = [name for name in names if not name.endswith("_bias") and "forget" not in name]
    reached = "yes" if choose(model, LoraConfig(r=2)).parameters else "no"
    grouped = "yes" if any(read_experts(module) for module in model.modules()) else "no"
    return f"| `{architecture}` | {reached} | {', '.join(f'`{name}`' for name in names)} | {grouped} |"


@pytest.mark.parametrize("architecture", FAMILIES)
def test_the_row_of_a_family(architecture: str) -> None:
    assert row_of(architecture) in PAGE.read_text(encoding="utf-8").splitlines()
