"""lamina's exceptions, each with the exit code that the command line returns for it.

Exit codes: 0 done; 1 failed; 2 wrong usage or configuration; 75 (EX_TEMPFAIL) interrupted, and can be resumed.

Every error that a user can cause names the field or file, the value found, what is allowed, and the fix. Each error
also inherits the matching standard exception, so that Python callers can catch `ValueError` or `OSError`.
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
    """Warns about something that a user should know but that does not stop the command."""


class LaminaError(Exception):
    """Base class of every error that lamina raises on purpose.

    Attributes:
        exit_code: Exit code of a command that fails with this error.
    """

    exit_code = 1

    def details(self) -> dict[str, object]:
        """Returns the error as plain data, for `--json`."""
        return {"type": type(self).__name__, "message": str(self)}


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with a configuration.

    Attributes:
        field: Dotted path, such as `train.learning_rate`.
        message: What is wrong, with the value found and what is allowed.
        fix: How to fix it; empty if the message already says so.
    """

    field: str
    message: str
    fix: str = ""

    def __str__(self) -> str:
        message = self.message if self.message.endswith((".", "?", "!")) else f"{self.message}."
        return f"{self.field}: {message}" + (f" Fix: {self.fix}" if self.fix else "")


class ConfigError(LaminaError, ValueError):
    """The configuration is invalid. The error reports all of its problems at once."""

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
    """The adapter is locked to a different base model than the one it is being loaded onto."""


class NewerVersionError(LaminaError, ValueError):
    """A file on disk was written by a newer lamina, in a format that this version does not know.

    Attributes:
        written_by: The version that wrote it; empty if it was not recorded.
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
    """Checks that this version can read the format of a file on disk: any format from 1 up to the newest it knows.

    Args:
        path: The file, to name in the error.
        found: The format number in the file.
        known: The newest format that this version reads.
        written_by: The version that wrote the file; empty if it was not recorded.

    Raises:
        NewerVersionError: The format is newer than `known`.
        ValueError: `found` is not a format number.
    """
    if not isinstance(found, int) or isinstance(found, bool) or found < 1:
        raise ValueError(f"its format is {found!r}, which is not an integer of at least 1")
    if found > known:
        raise NewerVersionError(
            path, written_by, f"its format is {found}, and this version reads formats up to {known}"
        )


class CertificateError(LaminaError):
    """The certificate's prompts show that the adapter does not act as it did in training.

    Attributes:
        certificate: The `Certificate` with the measurements.
    """

    def __init__(self, message: str, certificate: Any) -> None:
        self.certificate = certificate
        super().__init__(message)


class RunError(LaminaError):
    """A run directory is in use, is not empty, or is not what the command needs."""


class RegistryError(LaminaError):
    """A registry is damaged, cannot be reached, or does not allow what was asked."""


class ConflictError(RegistryError):
    """An alias was moved by somebody else between reading it and changing it. Nothing was changed."""


class EvidenceError(RegistryError):
    """There is no gate record that allows a promotion, or it is damaged, or of another pair."""


class TrainingError(LaminaError):
    """Training cannot continue, for example because the loss is not finite."""


class Interrupted(LaminaError):
    """Work was asked to stop, and kept what was done, such as a checkpoint. The message says how to go on.

    Attributes:
        facts: Details as plain data: the signal, the step, the command that resumes.
    """

    exit_code = 75

    def __init__(self, message: str, **facts: object) -> None:
        self.facts = facts
        super().__init__(message)

    def details(self) -> dict[str, object]:
        return {**super().details(), **self.facts}


class FleetError(LaminaError):
    """A cluster cannot be reached, or does not take a task."""


class BenchError(LaminaError):
    """A benchmark cannot be run: a peer is not installed, or every side failed."""


class KernelError(LaminaError, ValueError):
    """A kernel got an input that it does not support: a bug in lamina, caught before it gave a wrong result."""


class StorageError(LaminaError, OSError):
    """A file could not be written or read, for example because the disk is full, read-only or not permitted."""

    @classmethod
    def wrap(cls, error: OSError, path: Path | str, doing: str) -> StorageError:
        """Turns an `OSError` into a one-line message with the path, the cause and the fix."""
        reasons = {
            errno.ENOSPC: ("the disk is full", "free some space or choose another folder, then run again"),
            errno.EDQUOT: ("the disk quota is used up", "free some space or choose another folder"),
            errno.EROFS: ("the file system is read-only", "choose a writable folder"),
            errno.EACCES: (
                "permission denied",
                "choose a folder that you can write to, or change its permissions",
            ),
            errno.EPERM: ("operation not permitted", "choose a folder that you can write to"),
            errno.ENOTDIR: ("a part of the path is a file, not a folder", "choose another path"),
            errno.EEXIST: ("a file is in the place of a folder", "choose another path, or move the file"),
            errno.ENAMETOOLONG: ("a part of the path is too long", "choose a shorter name"),
            errno.EMFILE: ("too many files are open", "raise the limit (`ulimit -n`)"),
            errno.EFBIG: (
                "the file exceeds the size limit",
                "raise the file-size limit or choose another disk",
            ),
        }
        reason, fix = reasons.get(error.errno or 0, (error.strerror or str(error), "check the path and the disk"))
        return cls(f"{path}: {doing} failed: {reason}. Fix: {fix}.")


def nearest(name: str, allowed: Iterable[str]) -> str:
    """Returns a hint with the closest allowed name, or two if they are equally close; an empty string if none is close.

    A name is no hint for itself: where it is wrong all the same, another spelling is not the reason.

    >>> nearest("learning_rat", ["learning_rate", "seed"])
    "Did you mean 'learning_rate'?"
    """
    matches = difflib.get_close_matches(name, [each for each in allowed if each != name], n=2, cutoff=0.6)
    likeness = [difflib.SequenceMatcher(None, match, name).ratio() for match in matches]
    as_near = [repr(match) for match, ratio in zip(matches, likeness, strict=True) if ratio > likeness[0] - 0.05]
    return f"Did you mean {' or '.join(as_near)}?" if as_near else ""
