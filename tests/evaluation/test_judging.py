"""Models behind URLs as subjects and as judges of a task."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from lamina.cli.evaluation_of_tasks import evaluation_json
from lamina.engine.generator import Request
from lamina.errors import ConfigError, LaminaError
from lamina.evaluation import hosts
from lamina.evaluation.page import judged_line
from lamina.evaluation.remote import RemoteModel
from lamina.evaluation.subjects import evaluate_subjects
from tests.support.evaluation import Pair, write_jsonl, write_task
from tests.support.serving import USER, FakeEngine, build, listening


@contextmanager
def served(write: Callable[[Request], Any], monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, FakeEngine]]:
    """A server whose models say what a function says."""
    monkeypatch.setenv("OPENAI_API_KEY", USER)
    engine = FakeEngine(write)
    with listening(build(engine, port=0)) as (url, _):
        yield f"{url}/v1", engine


def rows_in(folder: Path, count: int = 12) -> Path:
    rows = [{"prompt": f"say {number}", "completion": "yes"} for number in range(count)]
    return write_jsonl(folder / "asked.jsonl", rows)


def test_a_url_is_a_subject(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows_in(tmp_path)
    task = write_task(tmp_path / "task.yaml")
    with served(lambda request: "yes" if request.adapter == "a" else "no", monkeypatch) as (url, engine):
        found = evaluate_subjects([f"{url}#a", f"{url}#b"], [task], forgetting=False, out=tmp_path / "one")
        assert len(engine.asked) == 24
        again = evaluate_subjects([f"{url}#a"], [task], forgetting=False, out=tmp_path / "two")
        assert len(engine.asked) == 36, "another model may answer there by now"
    values = [subject["tasks"]["task"]["exact_match"]["value"] for subject in found.subjects]
    assert values == [1.0, 0.0]
    assert found.result["pairs"][0]["verdict"] == "better"
    assert [subject["kind"] for subject in found.subjects] == ["url", "url"]
    assert again.subjects[0]["tasks"]["task"]["exact_match"]["value"] == 1.0


def test_a_url_that_is_down_ends_clearly_and_what_was_done_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows_in(tmp_path)
    task = write_task(tmp_path / "task.yaml")
    monkeypatch.setattr(hosts, "RemoteModel", partial(RemoteModel, retries=1, at_once=1, sleep=lambda seconds: None))
    asked: list[Request] = []
    breaks_at = 8

    def write(request: Request) -> list[Any]:
        asked.append(request)
        return [LaminaError("out of order")] if len(asked) >= breaks_at else list("yes")

    with served(write, monkeypatch) as (url, _):
        with pytest.raises(LaminaError, match="127"):
            evaluate_subjects([f"{url}#a"], [task], forgetting=False, out=tmp_path / "one")
        assert not (tmp_path / "one").exists()
        asked.clear()
        breaks_at = 1000
        found = evaluate_subjects([f"{url}#a"], [task], forgetting=False, out=tmp_path / "one")
        assert len(asked) == 5, "what was answered before is not asked again"
    assert found.subjects[0]["tasks"]["task"]["exact_match"]["value"] == 1.0
    with pytest.raises(LaminaError, match=r"127\.0\.0\.1:9"):
        evaluate_subjects(["http://127.0.0.1:9/v1#a"], [task], forgetting=False, out=tmp_path / "two")


def test_a_rubric_gives_each_row_a_grade(pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with served(lambda request: "4", monkeypatch) as (url, engine):
        judge = {"subject": f"{url}#a", "rubric": "It is short.", "again": 3}
        task = write_task(pair.folder / "graded.yaml", judge=judge, limit=10)
        found = evaluate_subjects([pair.strong], [task], forgetting=False, out=tmp_path / "one")
        asked = len(engine.asked)
        evaluate_subjects([pair.strong], [task], forgetting=False, out=tmp_path / "two")
        assert len(engine.asked) == asked, "verdicts are kept"
    assert [subject["tasks"]["graded"]["judge"]["value"] for subject in found.subjects] == [4.0, 4.0]
    assert set(found.subjects[0]["tasks"]["graded"]) == {"exact_match", "judge"}
    assert {each["subject"] for each in found.result["judged"]} == {str(pair.strong), pair.model.name}


def test_a_judge_that_prefers_the_first_decides_nothing(
    pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    with served(lambda request: "A", monkeypatch) as (url, _):
        task = write_task(pair.folder / "compared.yaml", scorers=[], judge=f"{url}#a", limit=20)
        found = evaluate_subjects([pair.strong], [task], forgetting=False, out=tmp_path / "one", notify=told.append)
    (judged,) = found.result["judged"]
    assert (judged["a"], judged["b"]) == (str(pair.strong), pair.model.name)
    assert judged["bias"] == "prefers_first"
    assert judged["comparison"]["verdict"] == "not_enough_rows"
    assert any("first" in text for text in told)
    assert (found.path / "page.html").read_text().count("judge") >= 1


def test_a_judge_reads_the_whole_conversation(pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    turns = [("system", "Answer in French."), ("user", "Hello"), ("assistant", "Bonjour"), ("user", "And good bye?")]
    rows = [{"messages": [{"role": role, "content": text} for role, text in (*turns, ("assistant", "Au revoir"))]}]
    with served(lambda request: "4", monkeypatch) as (url, engine):
        judge = {"subject": f"{url}#a", "rubric": "It is French.", "again": 0}
        data = write_jsonl(tmp_path / "turns.jsonl", rows)
        task = write_task(tmp_path / "turns.yaml", str(data), scorers=[], judge=judge)
        found = evaluate_subjects([pair.model], [task], forgetting=False, out=tmp_path / "one")
    (asked,) = engine.asked
    question = engine.template.tokenizer.decode(engine.tokenize(asked))
    assert "System: Answer in French.\n\nUser: Hello\n\nAssistant: Bonjour\n\nUser: And good bye?" in question
    shown = evaluation_json(found)["judged"][0]
    assert shown["mean"]["value"] == 4.0 and "scores" not in shown
    assert judged_line(shown).endswith(f"gives {pair.model} 4.000")


def test_a_judge_that_is_not_there_is_named_before_anything_is_asked(pair: Pair, tmp_path: Path) -> None:
    task = write_task(pair.folder / "judged.yaml", judge="../nobody")
    with pytest.raises(ConfigError, match=r"judge of 'judged'.*nobody"):
        evaluate_subjects(["../neither"], [task], out=tmp_path / "one")
