"""Answers on disk: what a killed evaluation wrote is not asked again, and what a kill tore apart is passed over."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lamina.chat.message import Message
from lamina.config.tasks import GenerationSettings
from lamina.engine.generator import Request
from lamina.evaluation.answers import Answer, AnswerFile, answer_key
from lamina.evaluation.asking import Shown, Speaker, answer_rows, turns_of
from lamina.evaluation.tasks import TaskRow
from tests.support.answers import FakeGenerator

ANSWER = Answer("said", "stop", 3, 2, 0.5)


def row_of(number: int, text: str = "", system: str = "") -> TaskRow:
    turns = [Message("user", text or f"question {number}")]
    turns = [Message("system", system), *turns] if system else turns
    return TaskRow(number, f"rows.jsonl, row {number}", tuple(turns), "answer", f"sha256:{number:064x}", {})


def speaker_of(generator: FakeGenerator, *shown: Shown) -> Speaker:
    return Speaker(generator, None, generator.template, shown)


def test_what_was_written_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "answers.jsonl"
    with AnswerFile(path) as file:
        file.add("a", ANSWER)
        file.add("b", Answer("line\nbreak \U0001f600 \ud800", "length", 0, 0, 0.0))
    again = AnswerFile(path)
    assert again.get("a") == ANSWER
    assert again.get("b") == Answer("line\nbreak \U0001f600 \ud800", "length", 0, 0, 0.0)
    assert again.get("c") is None


@pytest.mark.parametrize("cut", [2, 10, 60])
def test_a_torn_last_line_is_passed_over_and_stays_apart(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "answers.jsonl"
    with AnswerFile(path) as file:
        for key in "abc":
            file.add(key, ANSWER)
    path.write_bytes(path.read_bytes()[:-cut])
    with AnswerFile(path) as file:
        assert [file.get(key) for key in "abc"] == [ANSWER, ANSWER, None]
        file.add("c", ANSWER)
    assert [AnswerFile(path).get(key) for key in "abc"] == [ANSWER] * 3


def test_only_what_has_no_answer_is_asked(tmp_path: Path) -> None:
    rows = [row_of(number) for number in range(1, 21)]
    generator = FakeGenerator(lambda request: str(len(request.prompt or "")))
    settings = GenerationSettings(max_tokens=5)
    with AnswerFile(tmp_path / "a.jsonl") as file:
        first = answer_rows(speaker_of(generator), rows[:13], settings, file)
        assert len(generator.asked) == 13
        assert answer_rows(speaker_of(generator), rows, settings, file)[:13] == first
        assert len(generator.asked) == 20
        answer_rows(speaker_of(generator), rows, GenerationSettings(max_tokens=6), file)
        assert len(generator.asked) == 40, "other settings are other questions"


def test_answers_before_a_failure_are_kept(tmp_path: Path) -> None:
    asked: list[Request] = []

    def write(request: Request) -> str:
        asked.append(request)
        if len(asked) == 11:
            raise ConnectionError("gone")
        return "yes"

    rows, path = [row_of(number) for number in range(1, 21)], tmp_path / "a.jsonl"
    with AnswerFile(path) as file, pytest.raises(ConnectionError):
        answer_rows(speaker_of(FakeGenerator(write)), rows, GenerationSettings(), file)
    with AnswerFile(path) as file:
        assert len(file) == 8, "the first list of answers was whole"
        assert [each.text for each in answer_rows(speaker_of(FakeGenerator(write)), rows, GenerationSettings(), file)]


def test_rows_with_the_same_question_are_asked_once(tmp_path: Path) -> None:
    generator = FakeGenerator(lambda request: "same")
    rows = [row_of(1, "one"), row_of(2, "two"), row_of(3, "one")]
    with AnswerFile(tmp_path / "a.jsonl") as file:
        found = answer_rows(speaker_of(generator), rows, GenerationSettings(), file)
    assert (len(found), len(generator.asked)) == (3, 2)
    with AnswerFile(tmp_path / "b.jsonl") as file:  # drawn answers have a seed of their own
        answer_rows(speaker_of(generator), rows, GenerationSettings(temperature=1.0), file)
    assert len(generator.asked) == 5


def test_examples_stand_between_the_system_turn_and_the_question() -> None:
    shown = Shown((Message("system", "other"), Message("user", "2 + 2")), "4")
    turns = turns_of(row_of(1, "3 + 3", system="be brief"), [shown])
    assert [(turn.role, turn.content) for turn in turns] == [
        ("system", "be brief"),
        ("user", "2 + 2"),
        ("assistant", "4"),
        ("user", "3 + 3"),
    ]


def test_keys_differ_by_question_and_settings() -> None:
    keys = {answer_key(asked, {"seed": seed}) for asked in ("a", "b") for seed in (None, 1)}
    assert len(keys) == 4
    assert answer_key("a", {"x": 1, "y": 2}) == answer_key("a", {"y": 2, "x": 1})


def test_reasoning_is_kept_but_not_scored() -> None:
    assert Answer("<think>\nsix\n</think>\n\n6 ", "stop", 0, 0, 0.0).scored == "6"
    assert Answer("<think>\nnever ends", "length", 0, 0, 0.0).scored == ""


KILLED = """
import sys, time
from pathlib import Path
from lamina.config.tasks import GenerationSettings
from lamina.evaluation.answers import AnswerFile
from lamina.evaluation.asking import answer_rows
from tests.evaluation.test_answers import row_of, speaker_of
from tests.support.answers import FakeGenerator

def write(request):
    with open(sys.argv[2], "a") as log:
        log.write("x")
    time.sleep(float(sys.argv[3]))
    return "answer"

with AnswerFile(Path(sys.argv[1])) as file:
    found = answer_rows(speaker_of(FakeGenerator(write)), [row_of(n) for n in range(1, 41)], GenerationSettings(), file)
print(len(found))
"""


def test_a_killed_process_goes_on_where_it_was(tmp_path: Path) -> None:
    path, log = tmp_path / "answers.jsonl", tmp_path / "asked"
    process = subprocess.Popen([sys.executable, "-c", KILLED, path, log, "0.02"], stdout=subprocess.PIPE)
    end = time.monotonic() + 120
    while not path.exists() or path.read_bytes().count(b"\n") < 16:
        assert time.monotonic() < end
        assert process.poll() is None, "it was over before it could be killed"
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    whole = [json.loads(line) for line in path.read_bytes().splitlines()]
    kept = len(whole)
    assert 16 <= kept < 40
    path.write_bytes(path.read_bytes() + b'{"key": "torn')
    log.unlink()
    again = subprocess.run([sys.executable, "-c", KILLED, path, log, "0"], capture_output=True, text=True, check=True)
    assert again.stdout.strip() == "40"
    assert len(log.read_text()) == 40 - kept, "what was answered before is not asked again"
