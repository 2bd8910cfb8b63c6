"""What a user names as data: a file by its suffix, or a sheet (`book.xlsx:Sheet`). Imports nothing slow."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from lamina.config.shorthand import is_data_file, run_name

SHEET = re.compile(r"(?P<path>.+?\.xls[xm]):(?P<split>.+)", re.IGNORECASE)
# Excel allows some of them in the name of a sheet, and Windows none in that of a file.
_NOT_IN_FILE_NAMES = re.compile(r'[<>:"/\\|?*]')


def names_data(named: str | Path) -> bool:
    """Returns whether a text names data, and not a configuration.

    >>> names_data("faq.csv"), names_data("book.xlsx:Train"), names_data("run.yaml")
    (True, True, False)
    """
    return is_data_file(named) or SHEET.fullmatch(str(named)) is not None


def name_of_run(named: str) -> str:
    """Returns the name for a run on data: the file's without suffixes, and that of the sheet.

    >>> name_of_run("data/faq.csv"), name_of_run("data/book.xlsx:Train")
    ('faq', 'book-Train')
    """
    sheet = None if Path(named).exists() else SHEET.fullmatch(named)
    if sheet is None:
        return run_name(Path(named))
    return f"{run_name(Path(sheet['path']))}-{_NOT_IN_FILE_NAMES.sub('-', sheet['split'])}"


def values_of_sheet(named: str) -> dict[str, Any] | None:
    """Returns a configuration for a sheet alone, with all defaults; None if no sheet is named."""
    if is_data_file(named) or not SHEET.fullmatch(named):
        return None
    return {"data": {"train": named}, "output_dir": f"runs/{name_of_run(named)}"}
