"""Rows that become something of a loss's own are cached under a key of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from lamina.data.example import Example, Kind
from lamina.data.sequences import Sequences


def twice(example: Example) -> Sequence[Example]:
    return example, example


def margin_of(example: Example) -> Mapping[str, float]:
    return {"margin": example.margin or 0.0}


@pytest.mark.parametrize("own", [{"of": twice}, {"values": margin_of}])
def test_what_is_made_of_rows_has_a_key(own: dict[str, Any]) -> None:
    kinds = frozenset({Kind.CONVERSATION})
    with pytest.raises(ValueError, match="key"):
        Sequences(kinds, **own)
    assert Sequences(kinds, **own, key={"example": 1}).key == {"example": 1}
    assert Sequences(kinds).key is None
