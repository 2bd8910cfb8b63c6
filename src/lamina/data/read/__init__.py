"""From a path, a folder, a glob or a hub id to rows, one at a time, in any file format; one module per kind of file.

An unreadable row does not stop the reading: it becomes a `Fault` with its line, and the rows after it follow.
"""

from __future__ import annotations

from lamina.data.read.find import DataFile, find_files
from lamina.data.read.open import read_rows, rows_of
from lamina.data.read.rows import FAULTS, REMARKS, Fault, RawRow, Row

__all__ = ["FAULTS", "REMARKS", "DataFile", "Fault", "RawRow", "Row", "find_files", "read_rows", "rows_of"]
