"""The page of an evaluation: the verdict first, then lost and won rows with both answers, slices, forgetting, cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lamina import pages

Rows = Mapping[str, Sequence[Mapping[str, Any]]]


def evaluation_page(result: Mapping[str, Any], rows: Rows) -> str:
    return pages.page("lamina eval", "")
