"""Which paths are data, and which are configurations."""

from __future__ import annotations

from lamina.config.shorthand import COMPRESSED_SUFFIXES, DATA_SUFFIXES, is_data_file
from lamina.data.read.find import COMPRESSIONS, KINDS


def test_the_suffixes_are_those_that_can_be_read() -> None:
    assert set(KINDS) == DATA_SUFFIXES
    assert set(COMPRESSIONS) == COMPRESSED_SUFFIXES


def test_only_the_suffix_counts() -> None:
    assert is_data_file("a.b/x.jsonl") and is_data_file("x.TXT.gz")
    assert not any(map(is_data_file, ("run.yaml", "run", "x.gz", ".csv/run.yml", "")))
