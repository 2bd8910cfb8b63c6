"""A data file in the place of a configuration: `lamina train data.csv` is a run with all defaults."""

from __future__ import annotations

from pathlib import Path

# Suffixes by which a file is data, without those of compressed files.
DATA_SUFFIXES = frozenset(
    (
        *(".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".xlsx", ".xlsm"),
        *(".parquet", ".arrow", ".feather", ".txt", ".text"),
    )
)
COMPRESSED_SUFFIXES = frozenset({".gz", ".zst"})


def is_data_file(path: str | Path) -> bool:
    """Returns whether a path names data by its suffix.

    >>> is_data_file("faq.CSV"), is_data_file("rows.jsonl.gz"), is_data_file("run.yaml")
    (True, True, False)
    """
    suffixes = [suffix.lower() for suffix in Path(path).suffixes]
    if suffixes and suffixes[-1] in COMPRESSED_SUFFIXES:
        suffixes.pop()
    return bool(suffixes) and suffixes[-1] in DATA_SUFFIXES


def run_name(path: Path) -> str:
    """Returns the name for a run on a data file: the file's, without suffixes.

    >>> run_name(Path("data/faq.v2.jsonl.gz"))
    'faq.v2'
    """
    name = path.name
    for suffix in reversed(path.suffixes):
        if suffix.lower() not in DATA_SUFFIXES | COMPRESSED_SUFFIXES:
            break
        name = name.removesuffix(suffix)
    return name or "lamina"
