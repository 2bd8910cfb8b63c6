"""Whether answers stand after the prompts that ask for them in use."""

from __future__ import annotations

from lamina.checks.findings import Finding, Severity
from lamina.checks.kinds._base import BaseCheck, Tally
from lamina.checks.ledger import Ledger
from lamina.checks.seen import Seen
from lamina.checks.settings import CheckSettings

_FINDINGS = {
    "not_asked": (
        Severity.WARNING,
        "the chat template shows an earlier answer otherwise than it asks for it, so the answer is not learned",
        "Make each of these answers the last of a row of its own; or set data.thinking: strip, if it is reasoning that "
        "the template drops.",
    ),
    "cut_token": (
        Severity.WARNING,
        "the first token of an answer reaches into its prompt, and in use another one comes first",
        "Set data.chat_template to a template whose prompt does not end in white space.",
    ),
    "reasoning_given": (
        Severity.INFO,
        "an answer is learned after reasoning that is not, so in use the model reasons by itself",
        "data.thinking: unsupervised asks for it.",
    ),
    "template_opening": (
        Severity.INFO,
        "the chat template's own words before an answer are left to the model by its prompt, so they are learned",
        "data.enable_thinking: false puts an empty reasoning section into the prompt, if the template reads it.",
    ),
    "unread_kwargs": (
        Severity.WARNING,
        "chat_template_kwargs give what the chat template does not read",
        "Look at the name, or leave it out.",
    ),
}


class Check(BaseCheck):
    """What the rendering of a row has to tell (see `Remarks`)."""

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
