"""Personal data and secrets: what is found, what only looks similar, and that none is ever shown."""

from __future__ import annotations

import json

import pytest

from lamina.checks.html import write_html
from lamina.checks.private import mask, scan
from tests.support.checks import check, found, row

LETTERS = "Zk3mQ9xT2bLw8RfY5nVc7HgJ4pDs6Ae1Uo0iXqWtKyBz"
SECRETS = {
    "AWS access key": "AKIA" + LETTERS.upper()[:16],
    "AWS secret key": LETTERS[:40],
    "GitHub token": "ghp_" + LETTERS[:36],
    "OpenAI key": "sk-proj-" + LETTERS,
    "Anthropic key": "sk-ant-api03-" + LETTERS,
    "Hugging Face token": "hf_" + LETTERS[:34],
    "Slack token": "xoxb-123456789012-" + LETTERS[:24],
    "Google key": "AIza" + LETTERS[:35],
    "Stripe key": "sk_live_" + LETTERS[:24],
    "JSON web token": f"eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.{LETTERS}",
    "private key": f"-----BEGIN RSA PRIVATE KEY-----\n{LETTERS}\n{LETTERS}\n",
    "password": "hunterW2-9qpz",
    "password in an address": "hunterW2-9qpz",
}
AROUND = {
    "AWS secret key": "aws_secret_access_key = {}",
    "password": "DB_PASSWORD='{}'",
    "password in an address": "postgres://admin:{}@db.internal/main",
}


@pytest.mark.parametrize("kind", SECRETS)
def test_secrets_are_found_and_masked(kind: str) -> None:
    secret = SECRETS[kind]
    text = f"Use {AROUND.get(kind, '{}').format(secret)} here."
    assert [item.kind for item in scan(text) if item.secret] == [kind]
    assert secret not in mask(text) and secret[3:-2] not in mask(text)


@pytest.mark.parametrize(
    "text",
    [
        "AKIAIOSFODNN7EXAMPLE",
        "the risk-adjusted-return-of-the-portfolio-1",
        "sk-xxxxxxxxxxxxxxxxxxxxxxxx1",
        "password: your_password_here",
        'password = os.environ["PASSWORD"]',
        'token = response["access_token"]',
        "ACCESS_TOKEN = get_token()",
        "The secret: patience.",
        "key: value-of-the-map",
        "https://example.org:8080/path@2x.png",
        "eyJ is how a JSON web token begins",
        "-----BEGIN PUBLIC KEY-----",
    ],
)
def test_what_only_looks_like_a_secret(text: str) -> None:
    assert [item for item in scan(text) if item.secret] == []


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("email address", "Write to jane.doe+news@post.kemper.de today."),
        ("phone number", "Call +49 30 901820 or ask."),
        ("phone number", "Call (415) 867-5309 now."),
        ("phone number", "Call 415-867-5309."),
        ("card number", "It is 4539 1488 0343 6467, valid."),
        ("card number", "It is 378282246310005."),
        ("IBAN", "Pay to DE89 3704 0044 0532 0130 00, please."),
        ("IBAN", "GB29NWBK60161331926819"),
        ("US social security number", "SSN 536-22-8726."),
        ("public IP address", "From 81.169.145.78 at night."),
    ],
)
def test_personal_data_is_found_and_masked(kind: str, text: str) -> None:
    items = scan(text)
    assert [item.kind for item in items] == [kind]
    assert text[items[0].start : items[0].end] not in mask(text)


@pytest.mark.parametrize(
    "text",
    [
        "user@example.com and git@github.com",
        "npm install left-pad@1.3.0",
        "4539 1488 0343 6468",  # wrong check digit
        "DE89 3704 0044 0532 0130 01",
        "000-22-8726 and 536-00-8726",
        "127.0.0.1 and 192.168.100.200 and 1.2.3.4",
        "version 10.15.123.99",
        "<<300-200-1000=900>>",
        "355909190063 - 746 = 355909189317",
        "472547338 +966581793 = 1439129131",
        "(415) 555-0123 is for films",
        "from 1990-2020, 1,000,000 of 2,000,000",
    ],
)
def test_what_only_looks_like_personal_data(text: str) -> None:
    assert scan(text) == []


def test_nothing_private_is_in_a_report(tmp_path) -> None:
    token, email = SECRETS["GitHub token"], "jane.doe@post.kemper.de"
    rows = [
        row(f"{email} says {token}", f"{email} says {token} again"),
        row(f"{email} says {token}", f"{email} says {token} again"),
        row("x" * 195 + f" {token}", "fine", drop_reason="no_supervised_tokens"),
        row("hello", "there", refusal=f"cannot render {token}"),
    ]
    report = check(rows)
    assert found(report, "secret") == [1, 2, 3] and found(report, "personal_data") == [1, 2]
    write_html(report, tmp_path / "report.html")
    for shown in (json.dumps(report.as_json()), (tmp_path / "report.html").read_text(encoding="utf-8")):
        assert token not in shown and token[8:] not in shown and email not in shown
    assert report.ledger.excerpt(0).startswith("jane…")
