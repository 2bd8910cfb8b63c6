"""What a run must end like after each kind of fault."""

from __future__ import annotations

import re
from dataclasses import dataclass

from tests.support.faults import DIFFERENT, SAID, Fault
from tests.support.trial import Ended

# What the message must have beside the rank.
CAUSES = {
    "exception": SAID,
    "full disk": r"disk is full|No space left",
    "SIGTERM": r"SIGTERM|interrupted|stopped before the run started|stopped immediately",
    "SIGKILL": r"is gone|ended by SIGKILL",
    "SIGSTOP": r"suspended|distributed\.timeout|is gone|ended by SIGKILL",
    "other base": r"the base's",
    "other data": r"the data file rows\.jsonl",
    "other setting": r"seed is",
    "other version": r"lamina is",
    "the command is killed": r"the process that started the others is gone|ranks? \d",
}
# A note that the step is skipped; or the message of a run that ends by it, as it does in the first step.
_NOT_FINITE = re.compile(r"step (\d+): (?=.*not finite).*from rank (\d+)")


@dataclass
class Verdict:
    """What is to be said of a trial; see `Result` of `fault_trials.py`."""

    where: str
    outcome: str
    told: float | None = None
    ended: float | None = None
    problem: str = ""


def judge(fault: Fault, ended: Ended, digest: str, skipped: dict[str, str]) -> Verdict:
    """Looks how a command ended.

    Args:
        fault: What was planted.
        ended: How it ended.
        digest: The adapter's of an unbroken run.
        skipped: The adapter's without a step, by that step; gets those that are new.
    """
    faults = [note for note in ended.notes if note["what"] == "fault"]
    began = faults[0]["time"] if faults else 0.0
    where = faults[0]["where"] if faults else ""
    verdict = Verdict(where, "told" if ended.code else "went on")
    if not faults:
        verdict.outcome = "not reached"
    else:
        told = [at for at, line in ended.lines if at >= began and _names(fault, line)]
        verdict.told = min(told, default=began) - began if told else None
        verdict.ended = ended.time - began
    verdict.problem = _problem(fault, ended, digest, skipped, bool(faults))
    if ended.code is None:
        verdict.outcome, verdict.ended = "hung", None
    return verdict


def _names(fault: Fault, line: str) -> bool:
    """Whether a line tells of the fault."""
    if fault.kind == "gradient that is not finite":
        found = _NOT_FINITE.search(line)
        return found is not None and int(found[2]) == fault.rank
    cause = re.search(CAUSES.get(fault.kind, "$^"), line)
    anybody = fault.kind == "the command is killed"
    return cause is not None and (anybody or re.search(rf"rank {fault.rank}\b", line) is not None)


def _problem(fault: Fault, ended: Ended, digest: str, skipped: dict[str, str], reached: bool) -> str:
    if ended.code is None:
        return f"it hung; the stacks:\n{ended.stacks}"
    if fault.kind != "the command is killed" and len(ended.answers) != 1:
        return f"there are {len(ended.answers)} JSON objects"
    if ended.code == 0:
        return _problem_of_adapter(fault, ended, digest, skipped, reached)
    if not reached:
        return f"it ended with {ended.code} without a fault"
    if fault.kind.startswith("SIGSTOP,"):
        return f"it ended with {ended.code} instead of going on"
    messages = [line for _, line in ended.messages]
    if fault.kind == "the command is killed":
        return ""
    if len(messages) != 1:
        return f"there are {len(messages)} messages"
    if not any(_names(fault, line) for line in messages):
        return "the message does not name the fault"
    return "" if "error" in ended.answers[-1] else "the JSON object does not say that it failed"


def _problem_of_adapter(fault: Fault, ended: Ended, digest: str, skipped: dict[str, str], reached: bool) -> str:
    if reached and fault.kind in (*DIFFERENT, "exception") and not fault.max_restarts:
        return "it ended well in spite of the fault"
    if reached and fault.kind == "gradient that is not finite":
        found = next((found for _, line in ended.lines if (found := _NOT_FINITE.search(line))), None)
        if found is None or int(found[2]) != fault.rank:
            return "no note names the rank"
        if ended.digest == digest:
            return "the step was not skipped"
        digest = skipped.setdefault(found[1], ended.digest)
    return "" if ended.digest == digest else "the digest is another one"
