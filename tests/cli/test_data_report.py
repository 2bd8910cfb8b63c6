"""The terminal view of a data check."""

from __future__ import annotations

import pytest

from lamina.checks.findings import CheckedFile
from lamina.cli.data_report import bars, print_report
from tests.support.checks import check, encoded, row
from tests.support.models_zoo import build_tokenizer


def test_the_view_names_rows_figures_and_findings(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [row(f"[red]{n}", f"answer {n}", encoded=encoded(20 + n, 5)) for n in range(20)]
    report = check([*rows, rows[3]], tokenizer=build_tokenizer())
    report.files = [CheckedFile("train.jsonl", "train", "text", {}, 21, ["id"], [], ["it is short"])]
    print_report(report)
    shown = capsys.readouterr().out
    assert "train.jsonl: 21 rows (text); columns not used: id" in shown and "21 for training" in shown and "█" in shown
    assert (
        "note: it is short" in shown and "exact_duplicate" in shown and "train.jsonl:21" in shown and "[red]3" in shown
    )
    assert shown.rstrip().endswith("0 infos") or "1 info" in shown.splitlines()[-1]


def test_the_view_says_that_tokens_were_not_looked_at(capsys: pytest.CaptureFixture[str]) -> None:
    print_report(check([row("a", "b")]))
    assert "not counted without a model" in capsys.readouterr().out


def test_bars() -> None:
    assert bars([0, 1, 50, 100]) == " ▁▄█" and bars([]) == ""
