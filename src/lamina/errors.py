"""One small tree of errors, each with the exit code that the command line gives for it.

Exit codes: 0 done, 1 failed, 2 wrong usage or configuration, 75 (EX_TEMPFAIL) interrupted, and may be taken up again.

Every error that a user can cause names the field or file, the value that was found, what is allowed, and the fix.
Errors also inherit the standard exception of their kind, so that Python callers can catch `ValueError` or `OSError`.
"""

from __future__ import annotations

import difflib
import errno
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lamina.version import __version__, is_newer


class LaminaWarning(UserWarning):
    """Something a user should know that does not stop the work."""


class LaminaError(Exception):
    """Base of every error that lamina raises on purpose.

    Attributes:
        exit_code: What a command exits with.
    """

    exit_code = 1

    def details(self) -> dict[str, object]:
        """The error as plain data, for `--json`."""
        return {"type": type(self).__name__, "message": str(self)}


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with a configuration.

    Attributes:
        field: Dotted path, such as `train.learning_rate`.
        message: What is wrong, with the value found and what is allowed.
        fix: What to do about it; empty where the message already says it.
    """

    field: str
    message: str
    fix: str = ""

    def __str__(self) -> str:
        message = self.message if self.message.endswith((".", "?", "!")) else f"{self.message}."
        return f"{self.field}: {message}" + (f" Fix: {self.fix}" if self.fix else "")


class ConfigError(LaminaError, ValueError):
    """The configuration is wrong; all of its problems are reported at once."""

    exit_code = 2

    def __init__(self, problems: Sequence[Problem] | Problem, source: str = "") -> None:
        self.problems = [problems] if isinstance(problems, Problem) else list(problems)
        self.source = source
        head = f"{source}: " if source else ""
        if len(self.problems) == 1:
            super().__init__(f"{head}{self.problems[0]}")
        else:
            lines = "\n".join(f"  - {problem}" for problem in self.problems)
            super().__init__(f"{head}{len(self.problems)} problems in the configuration\n{lines}")

    def details(self) -> dict[str, object]:
        problems = [{"field": p.field, "message": p.message, "fix": p.fix} for p in self.problems]
        return {**super().details(), "problems": problems}


class DataError(LaminaError, ValueError):
    """A data file cannot be used; the message names the file and the row or line."""


class ModelError(LaminaError, ValueError):
    """A base model cannot be found, read or used."""


class AdapterError(LaminaError, ValueError):
    """An adapter folder is missing, damaged, or does not fit the model."""


class BaseMismatchError(AdapterError):
    """The adapter is locked to another base than the one it is being loaded on."""


class NewerVersionError(LaminaError, ValueError):
    """What lies on disk was written by a lamina that knows more than this one.

    Attributes:
        written_by: The version that wrote it; empty where that is not recorded.
    """

    def __init__(self, path: Path | str, written_by: str, reason: str) -> None:
        self.written_by = written_by
        writer = f"lamina {written_by}" if written_by else "another lamina"
        how = "a newer version" if is_newer(written_by) else "a later build"
        wanted = f"'lamina>={written_by}'" if is_newer(written_by) else "lamina"
        super().__init__(
            f"{path}: was written by {writer}, {how} than this one, which is {__version__}: {reason}. "
            f"Fix: pip install --upgrade {wanted}."
        )

    def details(self) -> dict[str, object]:
        return {**super().details(), "written_by": self.written_by, "version": __version__}


def check_format(path: Path | str, found: object, known: int, written_by: str) -> None:
    """Checks that a file on disk has a format that this version reads: any from 1 up to the one that it writes.

    Args:
        path: The file, for the error.
        found: The number in it.
        known: The newest that this version reads.
        written_by: The version that wrote it; empty where that is not recorded.

    Raises:
        NewerVersionError: It is a later one.
        ValueError: It is no format at all.
    """
    if not isinstance(found, int) or isinstance(found, bool) or found < 1:
        raise ValueError(f"its format is {found!r}, which is no number from 1 up")
    if found > known:
        raise NewerVersionError(path, written_by, f"it has format {found}, and up to {known} is known here")


class CertificateError(LaminaError):
    """The probes show that the adapter is not applied as it was trained.

    Attributes:
        certificate: The `Certificate` with the figures.
    """

    def __init__(self, message: str, certificate: Any) -> None:
        self.certificate = certificate
        super().__init__(message)


class RunError(LaminaError):
    """A run directory is in use, already filled, or not what the command needs."""


class TrainingError(LaminaError):
    """Training cannot go on, for instance because the loss is not finite."""


class Interrupted(LaminaError):
    """Training was asked to stop, saved a checkpoint and left; the message says how to resume.

    Attributes:
        facts: What there is to know about it, as plain data: the signal, the step, the command that goes on.
    """

    exit_code = 75

    def __init__(self, message: str, **facts: object) -> None:
        self.facts = facts
        super().__init__(message)

    def details(self) -> dict[str, object]:
        return {**super().details(), **self.facts}


class BenchError(LaminaError):
    """A benchmark cannot be run: a peer is not installed, or every side failed."""


class KernelError(LaminaError, ValueError):
    """A kernel was given what it does not take: a fault of lamina's own, found before it made a wrong number."""


class StorageError(LaminaError, OSError):
    """A file could not be written or read: no space, no permission, read-only."""

    @classmethod
    def wrap(cls, error: OSError, path: Path | str, doing: str) -> StorageError:
        """Turns an `OSError` into one sentence with the path, the cause and the fix."""
        reasons = {
            errno.ENOSPC: ("the disk is full", "free some space or choose another folder, then run again"),
            errno.EDQUOT: ("the disk quota is used up", "free some space or choose another folder"),
            errno.EROFS: ("the file system is read-only", "choose a folder that can be written"),
            errno.EACCES: (
                "permission denied",
                "choose a folder that you may write, or change its permissions",
            ),
            errno.EPERM: ("operation not permitted", "choose a folder that you may write"),
            errno.ENOTDIR: ("a part of the path is a file, not a folder", "choose another path"),
            errno.EEXIST: ("a file is where a folder has to be", "choose another path, or move the file away"),
            errno.ENAMETOOLONG: ("a part of the path is too long", "choose a shorter name"),
            errno.EMFILE: ("too many files are open", "raise the limit (`ulimit -n`)"),
            errno.EFBIG: (
                "the file is larger than is allowed here",
                "raise the file-size limit or choose another disk",
            ),
        }
        reason, fix = reasons.get(error.errno or 0, (error.strerror or str(error), "check the path and the disk"))
        return cls(f"{path}: {doing} failed: {reason}. Fix: {fix}.")


def nearest(name: str, allowed: Iterable[str]) -> str:
    """A hint with the nearest allowed name, or two that are as near; an empty string when none is.

    >>> nearest("learning_rat", ["learning_rate", "seed"])
    "Did you mean 'learning_rate'?"
    """
    matches = difflib.get_close_matches(name, list(allowed), n=2, cutoff=0.6)
    likeness = [difflib.SequenceMatcher(None, match, name).ratio() for match in matches]
    as_near = [repr(match) for match, ratio in zip(matches, likeness, strict=True) if ratio > likeness[0] - 0.05]
    return f"Did you mean {' or '.join(as_near)}?" if as_near else ""
