"""A batch that is interrupted goes on where it stopped."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lamina.engine.batch import Answered, answer_rows, read_prompts
from lamina.engine.engine import Engine
from lamina.engine.kept_answers import KeptAnswers
from lamina.engine.sampling import Sampling
from lamina.errors import Interrupted, StorageError

ROWS: list[dict[str, Any]] = [{"prompt": f"red green {number}", "id": number} for number in range(7)]
DRAWN = Sampling(temperature=1.0, max_tokens=6, seed=3)


class Stop(BaseException):
    """An interruption, as Ctrl-C is one."""


@pytest.fixture(scope="module")
def engine(model_folder: Path) -> Iterator[Engine]:
    with Engine(model_folder, dtype="float32") as engine:
        yield engine


def answer(engine: Engine, target: Path, rows: list[dict[str, Any]] = ROWS, **changes: Any) -> list[Answered]:
    with KeptAnswers(target) as kept:
        return answer_rows(engine, rows, **{"sampling": DRAWN, "adapter": None, "kept": kept, **changes})


def interrupted(engine: Engine, target: Path, after: int) -> None:
    def progress(done: int) -> None:
        if done == after:
            raise Stop

    with pytest.raises(Stop):
        answer(engine, target, progress=progress)


def asked(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Gets the number of requests of each later batch."""
    counts: list[int] = []
    answers = engine.answers

    def counted(requests: Any) -> Any:
        counts.append(len(requests))
        return answers(requests)

    monkeypatch.setattr(engine, "answers", counted)
    return counts


def test_the_same_command_answers_only_what_is_missing(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = answer(engine, tmp_path / "whole.jsonl")
    target = tmp_path / "sub" / "out.jsonl"
    interrupted(engine, target, 3)
    partial = target.with_name("out.jsonl.partial")
    partial.write_bytes(partial.read_bytes()[:-9])  # a crash in the middle of a line
    counts = asked(engine, monkeypatch)
    assert answer(engine, target) == whole
    assert counts == [5]
    assert list(tmp_path.glob("**/*.partial")) == []


@pytest.mark.parametrize(
    "changes",
    [{"sampling": Sampling(temperature=1.0, max_tokens=6, seed=4)}, {"system": "Be brief."}, {"adapter": "none"}],
    ids=["seed", "system", "adapter"],
)
def test_other_settings_take_no_answer_of_before(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    target = tmp_path / "out.jsonl"
    interrupted(engine, target, 3)
    counts = asked(engine, monkeypatch)
    results = answer(engine, target, **changes)
    assert counts == [0 if "adapter" in changes else 7]
    assert all((each.error is not None) is ("adapter" in changes) for each in results)


@pytest.mark.parametrize(("after", "says"), [(5, "5 answers are kept in"), (0, "no answer was finished yet")])
def test_an_interrupt_says_what_is_kept_and_how_to_go_on(tmp_path: Path, after: int, says: str) -> None:
    target = tmp_path / "out.jsonl"
    with pytest.raises(Interrupted, match=says) as caught, KeptAnswers(target) as kept:
        for number in range(after):
            kept.keep(str(number), {"answer": "red"})
        raise KeyboardInterrupt
    assert (caught.value.exit_code, caught.value.details()["answers"]) == (75, after)
    assert str(caught.value).endswith("Go on with: the same command again")
    assert target.with_name("out.jsonl.partial").exists() is (after > 0)


def test_a_row_that_changed_is_asked_again(engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "out.jsonl"
    interrupted(engine, target, 6)
    counts = asked(engine, monkeypatch)
    rows = [{**row, "prompt": row["prompt"].upper()} for row in ROWS[:2]] + ROWS[2:]
    answer(engine, target, rows)
    assert 2 <= counts[0] <= 3


def test_a_failed_row_is_no_answer(engine: Engine, tmp_path: Path) -> None:
    results = answer(engine, tmp_path / "out.jsonl", [{"prompt": "red", "adapter": "nobody"}, {"prompt": "green"}])
    assert [each.error is None for each in results] == [False, True]


def test_a_target_that_cannot_be_written_is_said_before_anything_is_answered(tmp_path: Path) -> None:
    (tmp_path / "out.jsonl.partial").mkdir()
    with pytest.raises(StorageError, match=r"name another --out"):
        KeptAnswers(tmp_path / "out.jsonl")


def test_two_commands_do_not_write_to_one_target(tmp_path: Path) -> None:
    target = tmp_path / "out.jsonl"
    with KeptAnswers(target) as kept:
        kept.keep("first", {"answer": "red"})
        with pytest.raises(StorageError, match=r"out\.jsonl: another command is writing to it\. Fix: wait"):
            KeptAnswers(target)
        assert target.with_name("out.jsonl.partial").read_text() != ""
    with KeptAnswers(target) as kept:
        assert len(kept) == 0


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_row_may_hold_what_only_python_takes_for_the_end_of_a_line(tmp_path: Path, end: str) -> None:
    texts = ["a\u2028b", "a\u2029b", "a\u0085b", "plain"]
    path = tmp_path / "prompts.jsonl"
    lines = [json.dumps({"prompt": text}, ensure_ascii=False) for text in texts]
    path.write_bytes(end.join([*lines, "", ""]).encode())
    assert read_prompts(path) == [{"prompt": text} for text in texts]


def test_an_answer_is_read_as_the_adapters_own_template_has_it(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Shouting:
        class voice:  # noqa: N801
            read = staticmethod(str.upper)

    monkeypatch.setattr(engine, "template_of", lambda adapter: engine.template if adapter else Shouting)
    (shouted,) = answer(engine, tmp_path / "out.jsonl", ROWS[:1])
    monkeypatch.undo()
    (plain,) = answer(engine, tmp_path / "other.jsonl", ROWS[:1])
    assert shouted.answer == str(plain.answer).upper()
