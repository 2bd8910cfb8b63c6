"""docs/coming-from.md: each setting of its tables goes where the page says."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from lamina.dialects.axolotl import AXOLOTL
from lamina.dialects.llama_factory import LLAMA_FACTORY
from lamina.dialects.outcome import Entry, Read, To
from lamina.dialects.trl import DPO

PAGE = Path(__file__).parents[2] / "docs" / "coming-from.md"
TABLES = {"TRL": DPO, "Axolotl": AXOLOTL, "LLaMA-Factory": LLAMA_FACTORY}


def claims() -> Iterator[tuple[str, str, str]]:
    """Yields the library, the setting and the lamina key of each row that names one of each."""
    library = ""
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")] if line.startswith("|") else []
        if len(cells) == 2 and cells[0] in TABLES:
            library = cells[0]
        elif not cells:
            continue
        elif len(cells) == 2 and library and (key := re.match(r"`([a-z]+\.?[a-z_]*)`", cells[1])):
            for name in re.findall(r"`([a-z0-9_]+)`", cells[0]):
                yield library, name, key[1]


@pytest.mark.parametrize(("library", "name", "key"), list(claims()))
def test_settings_go_where_the_page_says(library: str, name: str, key: str) -> None:
    entry: Entry = TABLES[library][name]
    assert isinstance(entry, To | Read)
    if isinstance(entry, To) and name not in ("neat_packing", "packing", "val_size"):
        assert entry.key in (key, "loss.loss_type")
    else:
        assert entry.key == key


def test_there_are_many() -> None:
    assert len(list(claims())) > 60
