"""Gate records: what `lamina gate` found about one pair of adapters, as a document whose SHA-256 is its name.

A record is canonical JSON. A file of it is called by its digest, so that an edited one is found out.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

from lamina import files
from lamina.errors import EvidenceError, check_format
from lamina.registry.digests import PREFIX, canonical, digest_of, is_digest, short

FORMAT = 1
KIND = "gate"
VERDICTS = ("promote", "hold", "not_enough_rows")
Verdict = Literal["promote", "hold", "not_enough_rows"]

_AGAIN = "run `lamina gate` again"


@dataclass(frozen=True)
class Side:
    """One of the two that were compared.

    Attributes:
        adapter_digest: Of the adapter; None for the bare base.
        base_digest: Of the base's tensors; None where it is not known.
        packed_digest: Of the base's weights as they were quantized for it; None where it is held as it is on disk.
    """

    adapter_digest: str | None
    base_digest: str | None = None
    packed_digest: str | None = None

    def as_json(self) -> dict[str, str | None]:
        """As plain data, without what few have, so that a record without it has the digest that it always had."""
        packed = {} if self.packed_digest is None else {"packed_digest": self.packed_digest}
        return {"adapter_digest": self.adapter_digest, "base_digest": self.base_digest, **packed}


@dataclass(frozen=True)
class Check:
    """One check of a gate.

    Attributes:
        name: Such as `better: routing exact_match`.
        passed: Whether it passed; None for not enough rows.
        value, low, high: What was measured, and its interval.
        limit: What it was held to.
        rows_needed: How many rows would decide it; None where it is decided.
    """

    name: str
    passed: bool | None
    value: float | None = None
    low: float | None = None
    high: float | None = None
    limit: float | None = None
    rows_needed: int | None = None


@dataclass(frozen=True)
class GateRecord:
    """What a gate found.

    Attributes:
        candidate: What may go live.
        against: What it was compared with.
        gate: The gate's settings.
        gate_digest: Of the gate's settings.
        checks: Each of its checks.
        verdict: `promote`, `hold` or `not_enough_rows`.
        evaluations: Digests of the evaluations that it rests on.
        rows_digest: Of the rows that both answered.
        created: When, in ISO 8601.
    """

    candidate: Side
    against: Side
    gate: dict[str, Any]
    gate_digest: str
    checks: tuple[Check, ...]
    verdict: Verdict
    evaluations: tuple[str, ...]
    rows_digest: str
    created: str

    def as_json(self) -> dict[str, Any]:
        """As plain data, in the form that the digest is of."""
        sides = {"candidate": self.candidate.as_json(), "against": self.against.as_json()}
        value = {**asdict(self), **sides}
        return {"format": FORMAT, "kind": KIND, **value, "checks": list(value["checks"])}

    @property
    def content(self) -> bytes:
        """Its canonical JSON."""
        return canonical(self.as_json())

    @property
    def pair(self) -> str:
        """Which pair it is of, for people."""
        return f"{short(self.candidate.adapter_digest)} against {short(self.against.adapter_digest)}"


def record_digest(record: GateRecord) -> str:
    """Returns a record's digest."""
    return digest_of(record.content)


def parse_record(content: bytes, source: str, digest: str | None = None) -> GateRecord:
    """Reads a record, and checks that it is whole and does not contradict itself.

    Args:
        content: Its canonical JSON.
        source: What to call it in messages.
        digest: What its digest must be; None to take it as it is.

    Raises:
        EvidenceError: It is no record, was edited, or says `promote` over a check that did not pass.
        NewerVersionError: It has a format that this version does not know.
    """
    found = digest_of(content)
    if digest is not None and found != digest:
        raise EvidenceError(f"{source}: the record was edited: its digest is {found}, not {digest}. Fix: {_AGAIN}.")
    try:
        value = json.loads(content)
        check_format(source, value["format"], FORMAT, "")
        record = _record(value)
        _check(record)
        same = record.content == content
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise EvidenceError(f"{source}: is no gate record ({error}). Fix: {_AGAIN}.") from None
    if not same:
        raise EvidenceError(f"{source}: is not in canonical form, so it was edited. Fix: {_AGAIN}.")
    return record


def write_record(record: GateRecord, folder: Path) -> Path:
    """Writes a record into a folder, under the name of its digest.

    Raises:
        EvidenceError: It contradicts itself.
        StorageError: It cannot be written.
    """
    content = record.content
    digest = digest_of(content)
    parse_record(content, "the record", digest)
    path = folder / f"{digest.removeprefix(PREFIX)}.json"
    files.write_bytes(path, content)
    return path


def read_record(path: Path) -> GateRecord:
    """Reads a record that `write_record` wrote.

    Raises:
        EvidenceError: It is not there, is no record, or was edited.
        NewerVersionError: It has a format that this version does not know.
    """
    if not re.fullmatch(r"[0-9a-f]{64}\.json", path.name):
        message = f"{path}: a gate record is called by its digest, so that an edited one is found out."
        raise EvidenceError(f"{message} Fix: give the file as `lamina gate` wrote it.")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise EvidenceError(f"{path}: cannot be read: {error.strerror}. Fix: check the path.") from None
    return parse_record(content, str(path), PREFIX + path.stem)


def _record(value: dict[str, Any]) -> GateRecord:
    names = {field.name for field in fields(GateRecord)} | {"format", "kind"}
    if value.keys() != names:
        odd = sorted(value.keys() ^ names)
        raise ValueError(f"{', '.join(odd)} is missing or not known")
    if value["kind"] != KIND:
        raise ValueError(f"its kind is {value['kind']!r}")
    rest = {name: value[name] for name in ("gate", "gate_digest", "verdict", "rows_digest", "created")}
    return GateRecord(
        candidate=Side(**value["candidate"]),
        against=Side(**value["against"]),
        checks=tuple(Check(**check) for check in value["checks"]),
        evaluations=tuple(value["evaluations"]),
        **rest,
    )


def _check(record: GateRecord) -> None:
    for side in (record.candidate, record.against):
        for digest in (side.adapter_digest, side.base_digest, side.packed_digest):
            if digest is not None and not (isinstance(digest, str) and digest):
                raise ValueError(f"{digest!r} is no digest")
    if not is_digest(record.candidate.adapter_digest):
        raise ValueError("its candidate has no adapter")
    if record.against.adapter_digest is not None and not is_digest(record.against.adapter_digest):
        raise ValueError("against.adapter_digest is no digest")
    if record.verdict not in VERDICTS:
        raise ValueError(f"its verdict is {record.verdict!r}")
    if not isinstance(record.gate, dict) or not all(is_digest(each) for each in record.evaluations):
        raise ValueError("gate is an object, and evaluations are digests")
    for name in ("gate_digest", "rows_digest", "created"):
        if not isinstance(getattr(record, name), str):
            raise ValueError(f"{name} is no text")
    for check in record.checks:
        if not isinstance(check.name, str) or check.passed not in (True, False, None):
            raise ValueError(f"the check {check.name!r} has no result")
        numbers = (check.value, check.low, check.high, check.limit, check.rows_needed)
        if not all(number is None or type(number) in (int, float) for number in numbers):
            raise ValueError(f"the check {check.name!r} has what is no number")
    if record.verdict == "promote" and not (record.checks and all(check.passed is True for check in record.checks)):
        raise ValueError("its verdict is promote, and not every check passed")
