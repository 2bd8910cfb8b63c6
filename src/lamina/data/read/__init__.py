"""From a path, a folder, a glob or a hub id to rows, one at a time, whatever the file's shape; one module a kind.

A row that cannot be read does not end the reading: it becomes a `Fault` with its line, and the rows after it follow.
"""

from __future__ import annotations

from lamina.data.read.find import DataFile, find_files
from lamina.data.read.open import read_rows, rows_of
from lamina.data.read.rows import FAULTS, REMARKS, Fault, RawRow, Row

__all__ = ["FAULTS", "REMARKS", "DataFile", "Fault", "RawRow", "Row", "find_files", "read_rows", "rows_of"]
