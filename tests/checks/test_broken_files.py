"""Broken files: each gets the right finding at the right line, and the rows around the damage are still read."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import datasets
import pytest

from lamina.checks.row import CheckedRow
from lamina.checks.rows import Rows
from lamina.checks.target import Target
from lamina.config import DataConfig
from lamina.errors import LaminaError
from tests.support.broken_files import BROKEN, CHAT, Broken


def rows_of(broken: Broken, folder: Path) -> list[CheckedRow]:
    path = folder / broken.name
    if callable(broken.content):
        broken.content(path)
    else:
        path.write_bytes(broken.content)
    return list(Rows(Target(DataConfig(train=str(path), eval=None, columns=broken.columns), None), None))


def says(row: CheckedRow) -> str:
    """Returns all messages about a row."""
    fault = (row.read.fault.code, row.read.fault.message) if row.read.fault else ()
    return " ".join((*fault, *row.read.remarks, row.read.drop_reason, row.read.misfit))


def test_there_are_fifty_of_them() -> None:
    assert len(BROKEN) >= 50


@pytest.mark.parametrize("name", BROKEN)
def test_broken_file(name: str, tmp_path: Path) -> None:
    broken = BROKEN[name]
    try:
        rows = rows_of(broken, tmp_path)
    except LaminaError as error:
        assert broken.good is None, error
        assert broken.said in str(error) or broken.said == "truncated"
        assert str(tmp_path / broken.name) in str(error)
        return
    assert broken.good is not None, [says(row) for row in rows][:5]
    good = [row for row in rows if row.read.example is not None and not row.read.drop_reason]
    assert len(good) == broken.good or (broken.good < 0 < len(good))
    assert [row.place.row for row in rows] == list(range(1, len(rows) + 1))
    if broken.said:
        (said,) = [row for row in rows if broken.said in says(row)]
        assert broken.line in (said.place.line, -1)
        others = [says(row).strip() for row in rows if row is not said]
        assert not any(others), others


def test_data_set_of_the_hub_that_cannot_be_had() -> None:
    with pytest.raises(LaminaError, match=r"nobody/nothing: is not a local file, and could not be loaded from the hub"):
        list(Rows(Target(DataConfig(train="nobody/nothing", eval=None), None), None))


def test_data_set_of_the_hub_with_a_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    table = datasets.Dataset.from_list([{**CHAT, "tools": [{"name": "f", "strict": None}]}] * 2)
    asked: list[object] = []

    def load_dataset(*names: object, **options: object) -> datasets.IterableDataset:
        asked.append((names, options))
        return table.to_iterable_dataset()

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    rows = list(Rows(Target(DataConfig(train="somebody/chats/short:train[:9]", eval=None), None), None))
    assert asked == [(("somebody/chats", "short"), {"split": "train[:9]", "streaming": True})]
    assert [row.read.example is not None and row.read.example.tools for row in rows] == [({"name": "f"},)] * 2


def test_data_set_of_the_hub_that_breaks_off(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken_off(*_: object, **__: object) -> Iterator[dict[str, object]]:
        yield CHAT
        raise ConnectionError("gone")

    monkeypatch.setattr(datasets, "load_dataset", broken_off)
    rows = list(Rows(Target(DataConfig(train="somebody/chats", eval=None), None), None))
    assert [says(row).strip() for row in rows] == ["", "unreadable_rest cannot be loaded from the hub: gone"]
