"""Checks whether answers follow the prompts that the model gets in generation."""

from __future__ import annotations

from lamina.checks.findings import Finding, Severity
from lamina.checks.kinds._base import BaseCheck, Tally
from lamina.checks.ledger import Ledger
from lamina.checks.seen import Seen
from lamina.checks.settings import CheckSettings

_FINDINGS = {
    "not_asked": (
        Severity.WARNING,
        "the chat template shows an earlier answer in another form than after its generation prompt, so the "
        "answer is not in the loss",
        "Put each of these answers at the end of a separate row; or set data.thinking: strip, if it is reasoning "
        "that the template drops.",
    ),
    "cut_token": (
        Severity.WARNING,
        "the first token of an answer overlaps its prompt, so generation starts with another token",
        "Set data.chat_template to a template whose generation prompt does not end with white space.",
    ),
    "reasoning_given": (
        Severity.INFO,
        "an answer follows reasoning that is not in the loss; in generation, the model writes its own reasoning",
        "This is the effect of data.thinking: unsupervised.",
    ),
    "template_opening": (
        Severity.INFO,
        "text that the chat template writes before an answer is not part of the generation prompt, so it is in "
        "the loss",
        "data.enable_thinking: false puts an empty reasoning section into the prompt, if the template reads it.",
    ),
    "unread_kwargs": (
        Severity.WARNING,
        "chat_template_kwargs set a variable that the chat template does not read",
        "Check the name, or remove it.",
    ),
}


class Check(BaseCheck):
    """Reports the remarks on the rendering of rows (see `Remarks`)."""

    def __init__(self, settings: CheckSettings, ledger: Ledger) -> None:
        super().__init__(settings, ledger)
        self._tallies = {code: Tally(settings) for code in _FINDINGS}
        self._rows = 0

    def see(self, seen: Seen) -> None:
        if seen.row.encoded is None:
            return
        self._rows += 1
        remarks = seen.row.encoded.remarks
        details = {
            "not_asked": ", ".join(f"answer {number}" for number in remarks.not_asked),
            "cut_token": "yes" * remarks.cut_token,
            "reasoning_given": "yes" * remarks.reasoning_given,
            "template_opening": repr(remarks.opening) if remarks.opening else "",
            "unread_kwargs": ", ".join(remarks.unread_kwargs),
        }
        for code, detail in details.items():
            if detail:
                self._tallies[code].add(seen, detail.removeprefix("yes"))

    def finish(self) -> list[Finding]:
        found = []
        for code, (severity, title, advice) in _FINDINGS.items():
            found += self._tallies[code].finding(code, severity, title, advice, self._rows)
        return found
