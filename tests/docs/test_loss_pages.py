"""The pages of the losses: their configurations are valid, and no field is left out."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from lamina.config import load_config
from lamina.config.losses import LOSS_CONFIGS

PAGES = Path(__file__).resolve().parents[2] / "docs" / "losses"
NAMES = [name for name in LOSS_CONFIGS if name != "cross_entropy"]


@pytest.mark.parametrize("name", NAMES)
def test_its_configurations_are_valid(name: str) -> None:
    blocks = re.findall(r"```yaml\n(.*?)```", (PAGES / f"{name}.md").read_text(encoding="utf-8"), re.DOTALL)
    assert blocks
    for block in blocks:
        assert load_config({"data": {"train": "train.jsonl"}, **yaml.safe_load(block)}).loss.type == name


@pytest.mark.parametrize("name", NAMES)
def test_it_names_every_field_and_the_paper(name: str) -> None:
    page, config = (PAGES / f"{name}.md").read_text(encoding="utf-8"), LOSS_CONFIGS[name]
    for field in config.model_fields.keys() - {"type"}:
        assert f"`{field}`" in page, field
    for number in re.findall(r"arXiv:([\d.]+\d)", config.paper):
        assert number in page
    for heading in ("When", "What it costs", "Traps", "What TRL does differently"):
        assert f"\n## {heading}\n" in page, heading


def test_the_overview_has_a_line_for_each() -> None:
    overview = (PAGES / "README.md").read_text(encoding="utf-8")
    assert all(f"[`{name}`]({name}.md)" in overview for name in NAMES)
