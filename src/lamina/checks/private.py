"""Finds and masks personal data and secrets in a text.

Precision is more important than recall: beyond the pattern, a check digit, a country's length, a header or the
randomness of the characters is verified where possible. Cheap substring tests come first, so that most rows need no
regular expression.
"""

from __future__ import annotations

import base64
import contextlib
import ipaddress
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Private:
    """A private span of text.

    Attributes:
        kind: A kind such as `email address` or `AWS access key`.
        start: First character.
        end: End, exclusive.
        secret: Whether it is a secret (it grants access) rather than personal data.
    """

    kind: str
    start: int
    end: int
    secret: bool


def scan(text: str) -> list[Private]:
    """Returns all private spans in a text, in order; of overlapping spans, only a secret or the first."""
    found = [*_secrets(text), *_personal(text)]
    if len(found) < 2:
        return found
    kept: list[Private] = []
    for item in sorted(found, key=lambda item: (not item.secret, item.start)):
        if all(item.end <= other.start or item.start >= other.end for other in kept):
            kept.append(item)
    return sorted(kept, key=lambda item: item.start)


def mask(text: str, found: list[Private] | None = None) -> str:
    """Returns the text with the middle of all private spans removed, and without halves of surrogate pairs.

    >>> mask("write to jane.doe@mail-provider.net")
    'write to jane…et'
    """
    for item in reversed(scan(text) if found is None else found):
        value = text[item.start : item.end]
        head, tail = min(4, len(value) // 5), min(2, len(value) // 10)
        text = f"{text[: item.start]}{value[:head]}…{value[len(value) - tail :]}{text[item.end :]}"
    return text.encode("utf-8", "replace").decode("utf-8")  # half of a surrogate pair cannot be encoded


# ---- secrets

_TOKEN_END = r"(?![A-Za-z0-9_-])"
_NAMES = r"password|passwd|passphrase|pwd|secret|api[_-]?key|access[_-]?key|access[_-]?token|auth[_-]?token"
_PLACEHOLDER = re.compile(
    r"(?i)example|xxx|\*\*\*|\.\.\.|your|changeme|change_me|placeholder|password|passwd|secret|dummy|test|foobar|"
    r"12345|abcdef|^[<$%{\[(]|environ|getenv|config|input|null|none|undefined|redacted"
)


def _looks_random(value: str) -> bool:
    """Returns whether a token has many different characters and is not an example from a manual."""
    return len(set(value)) >= 10 and not re.search(r"(?i)example|xxxx|your|abcdefgh|(.)\1{4}", value)


def _looks_like_a_password(value: str) -> bool:
    value = value.rstrip(".!?")
    kinds = (str.islower, str.isupper, str.isdigit, lambda character: not character.isalnum())
    lower, upper, digit, other = (any(map(kind, value)) for kind in kinds)
    mixed = (digit and (lower or upper)) or (lower and upper and other)
    return mixed and len(set(value)) >= 6 and not _PLACEHOLDER.search(value)


def _is_jwt(value: str) -> bool:
    head = value.partition(".")[0]
    with contextlib.suppress(ValueError):
        return "alg" in json.loads(base64.urlsafe_b64decode(head + "=" * (-len(head) % 4)))
    return False


@dataclass(frozen=True, slots=True)
class _Pattern:
    """The pattern of a secret. Every match contains one of the substrings `marks`; group 1 is the secret itself."""

    kind: str
    marks: tuple[str, ...]
    shape: re.Pattern[str]
    holds: Callable[[str], bool] = _looks_random


_SECRETS = (
    _Pattern("AWS access key", ("AKIA", "ASIA"), re.compile(r"\b((?:AKIA|ASIA)[A-Z0-9]{16})\b")),
    _Pattern(
        "AWS secret key",
        ("ws_secret", "WS_SECRET", "wsSecret"),
        re.compile(r"(?i)aws_?secret_?(?:access_?)?key\W{1,6}([A-Za-z0-9/+]{40})(?![A-Za-z0-9/+])"),
    ),
    _Pattern(
        "GitHub token",
        ("ghp_", "gho_", "ghu_", "ghs_", "ghr_", "github_pat_"),
        re.compile(r"\b(gh[pousr]_[A-Za-z0-9]{36,}|github_pat_[A-Za-z0-9_]{40,})\b"),
    ),
    _Pattern("Anthropic key", ("sk-ant-",), re.compile(rf"\b(sk-ant-[A-Za-z0-9_-]{{20,}}){_TOKEN_END}")),
    _Pattern(
        "OpenAI key",
        ("sk-",),
        re.compile(rf"(?<![A-Za-z0-9_-])(sk-(?!ant-)(?=[A-Za-z_-]*\d)[A-Za-z0-9_-]{{20,}}){_TOKEN_END}"),
    ),
    _Pattern("Hugging Face token", ("hf_",), re.compile(r"\b(hf_[A-Za-z0-9]{30,})\b")),
    _Pattern("Slack token", ("xox",), re.compile(rf"\b(xox[abeprs]-[A-Za-z0-9-]{{16,}}){_TOKEN_END}")),
    _Pattern(
        "Slack webhook", ("hooks.slack.com/",), re.compile(r"(hooks\.slack\.com/services/T\w+/B\w+/[A-Za-z0-9]{20,})")
    ),
    _Pattern("Google key", ("AIza",), re.compile(rf"\b(AIza[A-Za-z0-9_-]{{35}}){_TOKEN_END}")),
    _Pattern("Stripe key", ("k_live_",), re.compile(r"\b([sr]k_live_[A-Za-z0-9]{20,})\b")),
    _Pattern(
        "JSON web token",
        ("eyJ",),
        re.compile(rf"\b(eyJ[A-Za-z0-9_-]{{10,}}\.eyJ[A-Za-z0-9_-]{{6,}}\.[A-Za-z0-9_-]{{20,}}){_TOKEN_END}"),
        _is_jwt,
    ),
    _Pattern(
        "private key",
        ("PRIVATE KEY",),
        re.compile(r"(-----BEGIN (?:[A-Z]+ )*PRIVATE KEY(?: BLOCK)?-----[\sA-Za-z0-9+/=:,.\\-]{60,})"),
        lambda value: True,
    ),
    _Pattern(
        "password",
        ("assw", "ASSW", "assphrase", "pwd", "PWD", "ecret", "ECRET", "key", "KEY", "Key", "oken", "OKEN"),
        re.compile(
            rf"(?i)(?<![a-z0-9])(?:{_NAMES})[\"']?\s{{0,2}}[:=]\s{{0,2}}[\"']?([^\s\"',;<>()\[\]{{}}]{{8,64}}+)(?!\()"
        ),
        _looks_like_a_password,
    ),
    _Pattern(
        "password in an address",
        ("://",),
        re.compile(r"\b[a-z][a-z0-9+.-]{1,20}://[^\s:/@]{1,64}:([^\s:/@]{6,64})@[\w.-]+"),
        _looks_like_a_password,
    ),
)


def _secrets(text: str) -> Iterator[Private]:
    for pattern in _SECRETS:
        if any(mark in text for mark in pattern.marks):
            for match in pattern.shape.finditer(text):
                if pattern.holds(match[1]):
                    yield Private(pattern.kind, match.start(1), match.end(1), secret=True)


# ---- personal data

_EMAIL = re.compile(r"(?<![\w.+/-])[A-Za-z0-9][\w.+-]{0,63}@(?:[A-Za-z0-9-]{1,63}\.)+[A-Za-z]{2,24}(?![\w@])")
_NOBODY = re.compile(r"(?i)^(?:no-?reply|git)@|@(?:[\w-]+\.)*(?:example|test|invalid|localhost)(?:\.\w+)?$")

# Every number below, and every IBAN, contains digits and separators of this length.
_ANY_NUMBER = re.compile(r"\d[\d ().\-]{7}")
_CARD = re.compile(r"(?<![\w.-])(?<![-+*/=] )\d(?:[ -]?\d){14,15}(?![\w-]|\.\d| ?[-+*/=]| \d)")
_PHONE = re.compile(
    r"(?<![\w.])\+[1-9]\d{0,2}[ .-]?(?:\(\d{1,4}\)[ .-]?)?\d{1,4}(?:[ .-]?\d{2,4}){2,4}(?![\w-])"
    r"|(?<![\w.<=*/+-])(?:1[ .-])?(?:\([2-9]\d\d\) ?|[2-9]\d\d[.-])[2-9]\d\d[.-]\d{4}(?![\w=*/+-])"
)
_US_SSN = re.compile(r"(?<![\w.<=*/+-])(?!000|666|9)\d{3}-(?!00)\d\d-(?!0000)\d{4}(?![\w=*/+-])")
_IP = re.compile(r"(?<![\w.-])(?:\d{1,3}\.){3}\d{1,3}(?!\.?\w)")
_IBAN = re.compile(r"[A-Z]{2}\d\d ?[A-Z0-9]{4}")
_IBAN_LENGTHS = {
    country: length
    for length, countries in (
        (15, ("NO",)),
        (16, ("BE",)),
        (18, ("DK", "FI", "NL")),
        (19, ("SI",)),
        (20, ("AT", "EE", "LT", "LU")),
        (21, ("CH", "HR", "LI", "LV")),
        (22, ("BG", "DE", "GB", "IE", "RS")),
        (23, ("AE", "IL")),
        (24, ("CZ", "ES", "RO", "SA", "SE", "SK")),
        (25, ("PT",)),
        (26, ("IS", "TR")),
        (27, ("FR", "GR", "IT", "MC", "SM")),
        (28, ("CY", "HU", "PL")),
        (29, ("BR", "QA", "UA")),
        (30, ("KW",)),
        (31, ("MT",)),
    )
    for country in countries
}


def _personal(text: str) -> Iterator[Private]:
    if "@" in text:
        for match in _EMAIL.finditer(text):
            if not _NOBODY.search(match[0]):
                yield Private("email address", *match.span(), secret=False)
    if not _ANY_NUMBER.search(text):
        return
    yield from _ibans(text)
    for kind, shape, holds in _NUMBERS:
        for match in shape.finditer(text):
            if holds(match):
                yield Private(kind, *match.span(), secret=False)


def _is_card(match: re.Match[str]) -> bool:
    digits = re.sub(r"\D", "", match[0])
    length = 15 if re.match(r"3[47]", digits) else 16 if re.match(r"4|5[1-5]|2[2-7]|6011|65|35", digits) else 0
    return len(digits) == length and len(set(digits)) > 1 and _luhn(digits)


def _luhn(digits: str) -> bool:
    doubled = (int(digit) * 2 for digit in digits[-2::-2])
    return (sum(map(int, digits[-1::-2])) + sum(n - 9 if n > 9 else n for n in doubled)) % 10 == 0


def _is_phone(match: re.Match[str]) -> bool:
    digits = re.sub(r"\D", "", match[0])
    if re.search(r"\d\s*$", match.string[max(0, match.start() - 5) : match.start()]):  # an arithmetic expression
        return False
    # 555-0100 to 555-0199 are reserved for fiction.
    return 9 <= len(digits) <= 15 and digits[-7:-2] != "55501"


def _is_public_ip(match: re.Match[str]) -> bool:
    # Shorter ones are as often version or section numbers.
    if len(match[0]) < 9 or re.search(
        r"(?i)(?:version|release|section|v)\W{0,2}$", match.string[: match.start()][-12:]
    ):
        return False
    with contextlib.suppress(ValueError):
        return ipaddress.IPv4Address(match[0]).is_global
    return False


_NUMBERS: tuple[tuple[str, re.Pattern[str], Callable[[re.Match[str]], bool]], ...] = (
    ("card number", _CARD, _is_card),
    ("phone number", _PHONE, _is_phone),
    ("US social security number", _US_SSN, lambda match: True),
    ("public IP address", _IP, _is_public_ip),
)


def _ibans(text: str) -> Iterator[Private]:
    for match in _IBAN.finditer(text):
        length = _IBAN_LENGTHS.get(match[0][:2])
        if length is None or text[match.start() - 1 : match.start()].isalnum():
            continue
        whole = re.compile(rf"(?:[A-Z0-9] ?){{{length - 1}}}[A-Z0-9](?![A-Za-z0-9])").match(text, match.start())
        if whole:
            compact = whole[0].replace(" ", "")
            number = "".join(str(int(character, 36)) for character in compact[4:] + compact[:4])
            if int(number) % 97 == 1:
                yield Private("IBAN", *whole.span(), secret=False)
