"""The pages of the methods: their configurations are valid, and no field is left out."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from lamina.config import METHOD_CONFIGS, load_config

PAGES = Path(__file__).resolve().parents[2] / "docs" / "methods"
NAMES = [name for name in METHOD_CONFIGS if (PAGES / f"{name}.md").exists()]


@pytest.mark.parametrize("name", NAMES)
def test_its_configurations_are_valid(name: str) -> None:
    blocks = re.findall(r"```yaml\n(.*?)```", (PAGES / f"{name}.md").read_text(encoding="utf-8"), re.DOTALL)
    assert blocks
    for block in blocks:
        config = load_config({"data": {"train": "train.jsonl"}, **yaml.safe_load(block)})
        assert config.method.type == name


@pytest.mark.parametrize("name", NAMES)
def test_it_names_every_field_and_the_paper(name: str) -> None:
    page, config = (PAGES / f"{name}.md").read_text(encoding="utf-8"), METHOD_CONFIGS[name]
    for field in config.model_fields.keys() - {"type", "from"}:
        assert f"`{field}`" in page, field
    for number in re.findall(r"arXiv:[\d.]+\d", config.paper):
        assert number in page
