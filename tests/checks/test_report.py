"""A report, as JSON and as an HTML page."""

from __future__ import annotations

import json
from pathlib import Path

from lamina.checks.findings import CheckedFile, Severity
from lamina.checks.html import write_html
from tests.support.checks import chat, check, encoded, row
from tests.support.models_zoo import build_tokenizer


def report():
    rows = [row(f"<b>{n}</b> & more", f"<script>alert({n})</script>", encoded=encoded(20 + n, 5)) for n in range(30)]
    rows += [rows[0], rows[1], row("a", "b", refusal="<i>no</i>"), chat(())]
    return check(rows, tokenizer=build_tokenizer())


def test_findings_are_worst_first() -> None:
    severities = [finding.severity for finding in report().findings]
    assert severities == sorted(severities, key=list(Severity).index)
    assert severities[0] is Severity.ERROR and report().errors == [report().findings[0]]


def test_json_is_plain_and_names_each_row() -> None:
    result = report()
    result.files = [CheckedFile("train.jsonl", "train", "messages", {"prompt": "q"}, 34, [], ["a.md"], [])]
    read = json.loads(json.dumps(result.as_json()))
    duplicates = next(finding for finding in read["findings"] if finding["code"] == "exact_duplicate")
    assert duplicates["severity"] == "warning" and duplicates["count"] == 2
    assert duplicates["examples"][0]["place"] == {"file": "train.jsonl", "row": 31, "line": 31}
    assert read["severities"]["error"] == 1 and read["files"] == [vars(result.files[0])] and read["facts"]["rows"] == 34


def test_only_so_many_rows_are_shown() -> None:
    result = check([row("a", "b")] * 50)
    finding = result.find("exact_duplicate")
    assert finding and finding.count == 49 and len(finding.examples) == 20


def test_the_page_escapes_what_the_data_says(tmp_path: Path) -> None:
    result = report()
    result.files = [CheckedFile("<train>.jsonl", "train", "messages", {}, 34, [], [], ["<b>"])]
    write_html(result, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<script" not in page and "<b>" not in page and "<i>" not in page and "<train>" not in page
    assert (
        "&lt;script&gt;" in page and "train.jsonl:31" in page and "<svg" in page and "tokens per training row" in page
    )
    assert page.count("<details>") == sum(bool(finding.examples) for finding in result.findings)


def test_half_a_character_can_be_reported(tmp_path: Path) -> None:
    result = check(
        [row("half \ud83d an emoji", "\ud83d", remarks=("half_a_character",)), row("a", "b", refusal="\ud83d")]
    )
    write_html(result, tmp_path / "report.html")
    json.dumps(result.as_json(), ensure_ascii=False).encode("utf-8")
    assert result.ledger.excerpt(0) == "half ? an emoji ?"


def test_the_page_of_nothing(tmp_path: Path) -> None:
    write_html(check([]), tmp_path / "report.html")
    assert "there is no row to train on" in (tmp_path / "report.html").read_text(encoding="utf-8")
