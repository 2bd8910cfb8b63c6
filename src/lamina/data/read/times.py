"""Dates and times of a table as text: the same from every kind of file and from rows in memory."""

from __future__ import annotations

import datetime

TIMES = datetime.date | datetime.time


def time_text(value: datetime.date | datetime.time) -> str:
    """Returns a date or time as ISO's text, as spreadsheets and pandas write it: a blank before the time, and of a
    midnight without a time zone the date alone, since many tables know no dates without a time."""
    if not isinstance(value, datetime.datetime):
        return value.isoformat()
    if value.tzinfo is None and value.time() == datetime.time():
        return value.date().isoformat()
    return value.isoformat(" ")
