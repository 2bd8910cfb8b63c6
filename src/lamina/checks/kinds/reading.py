"""Finds rows that cannot be read, and rows with odd bytes."""

from __future__ import annotations

from lamina.checks.findings import Finding, Severity
from lamina.checks.kinds._base import BaseCheck, Tally
from lamina.checks.ledger import Ledger
from lamina.checks.seen import Seen
from lamina.checks.settings import CheckSettings
from lamina.data.read.rows import ENCODINGS, FAULTS, REMARKS

_REPAIRED = "`--fix` repairs it."
_ADVICE = {
    "byte_order_mark": f"Save the file as UTF-8 without a byte-order mark. {_REPAIRED}",
    "utf_16": "Nothing needs to be done; other programs may want the file as UTF-8.",
    "windows_1252": "Check some accented letters; if they are wrong, save the file as UTF-8 (in Excel: CSV UTF-8).",
    "nul": f"NUL is not a character of any language; find out what wrote it. {_REPAIRED}",
    "duplicate_key": "Find out which of the two values is correct; the last one is used.",
    "not_a_number": "Write null, or remove the value.",
    "half_a_character": f"Half an emoji is not text; find out what cut it. {_REPAIRED}",
    "replacement_character": "The original character is lost; read the source again with the correct encoding.",
    "mojibake": f"Take the text from its source again, decoded as UTF-8. {_REPAIRED}",
    "missing_value_word": "Find out whether a value is missing; the model would learn to say the word.",
}
_HARMLESS = ENCODINGS | {"byte_order_mark"}


class Check(BaseCheck):
    """Faults are errors: training stops on them. A file's mark and encoding are harmless; other remarks warn."""

    def __init__(self, settings: CheckSettings, ledger: Ledger) -> None:
        super().__init__(settings, ledger)
        self._faults = {code: Tally(settings) for code in FAULTS}
        self._remarks = {code: Tally(settings) for code in REMARKS}

    def see(self, seen: Seen) -> None:
        if seen.row.read.fault is not None:
            self._faults[seen.row.read.fault.code].add(seen, seen.row.read.fault.message)
        for remark in seen.row.read.remarks:
            self._remarks[remark].add(seen)

    def finish(self) -> list[Finding]:
        rows = len(self.ledger)
        found = []
        for code, tally in self._faults.items():
            advice = "Correct the row, or remove it with `--fix`."
            found += tally.finding(code, Severity.ERROR, f"cannot be read: the row {FAULTS[code]}", advice, rows)
        for code, tally in self._remarks.items():
            severity = Severity.INFO if code in _HARMLESS else Severity.WARNING
            found += tally.finding(code, severity, REMARKS[code], _ADVICE[code], rows)
        return found
