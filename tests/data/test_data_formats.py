"""Formats: which one a file has, what a row means, and what a row that does not fit is answered with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lamina.config import DataConfig
from lamina.data.dataset import load_examples
from lamina.data.example import Message
from lamina.data.formats import DETECT_ROWS, FORMATS, choose_format, rename_columns
from lamina.data.formats._fields import RowError
from lamina.errors import DataError

PATH = Path("rows.jsonl")
TURNS = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
CHAT, PAIR, ALPACA = {"messages": TURNS}, {"prompt": "q", "completion": "a"}, {"instruction": "q", "output": "a"}
ASKED = [Message("user", "q"), Message("assistant", "a")]


def error_of(rows: list[dict[str, Any]], wanted: str = "auto") -> str:
    with pytest.raises(DataError) as caught:
        choose_format(rows, wanted, PATH)
    assert str(caught.value).startswith(str(PATH))
    return str(caught.value)


def load(tmp_path: Path, rows: list[dict[str, Any]], **settings: Any) -> Any:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return load_examples(DataConfig(train=str(path), **settings), path, "data.train", None)


@pytest.mark.parametrize(
    ("row", "name"),
    [
        (CHAT, "messages"),
        (PAIR, "prompt_completion"),
        ({"prompt": TURNS[:1], "completion": TURNS[1:]}, "prompt_completion"),
        (ALPACA, "alpaca"),
        ({**ALPACA, "input": "", "system": None, "id": 3}, "alpaca"),
    ],
)
def test_format_is_detected(row: dict[str, Any], name: str) -> None:
    assert choose_format([row] * 3, "auto", PATH) is FORMATS[name]


@pytest.mark.parametrize("name", FORMATS)
def test_format_that_is_asked_for_is_taken_unseen(name: str) -> None:
    assert choose_format([{"x": 1}], name, PATH) is FORMATS[name]


def test_rows_that_fit_several_formats_are_not_guessed_about() -> None:
    message = error_of([{**PAIR, **ALPACA}] * 2)
    assert "more than one format: alpaca, prompt_completion" in message
    assert "data.format" in message
    assert choose_format([{**PAIR, **ALPACA}, PAIR], "auto", PATH) is FORMATS["prompt_completion"]


def test_unknown_columns_are_listed_with_the_known_formats() -> None:
    message = error_of([{"question": "q", "answer": "a"}])
    assert "'question', 'answer'" in message
    assert all(name in message for name in (*FORMATS, "data.columns"))


def test_messages_that_are_no_list_are_not_taken_for_a_conversation() -> None:
    assert "'messages'" in error_of([{"messages": "hello"}])


@pytest.mark.parametrize(
    ("common", "odd"),
    [
        (ALPACA, {"text": "x", "id": 1}),
        (ALPACA, CHAT),
        (CHAT, PAIR),
        pytest.param(CHAT, ALPACA),
        pytest.param(PAIR, CHAT),
    ],
)
def test_odd_row_is_named_with_its_columns(common: dict[str, Any], odd: dict[str, Any]) -> None:
    message = error_of([common, common, odd, common, common])
    assert f"row 3 has the columns {', '.join(map(repr, odd))}" in message


@pytest.mark.parametrize(
    ("row", "messages"),
    [
        (PAIR, ASKED),
        ({**PAIR, "system": "s"}, [Message("system", "s"), *ASKED]),
        ({**PAIR, "system": None}, ASKED),
        ({"prompt": TURNS * 2, "completion": "end"}, [*ASKED, *ASKED, Message("assistant", "end")]),
        ({"prompt": "q", "completion": TURNS[1:]}, ASKED),
    ],
)
def test_prompt_completion(row: dict[str, Any], messages: list[Message]) -> None:
    assert FORMATS["prompt_completion"].parse(row) == messages


@pytest.mark.parametrize(
    ("row", "messages"),
    [
        (ALPACA, ASKED),
        ({**ALPACA, "input": "  "}, ASKED),
        ({**ALPACA, "input": None, "system": ""}, ASKED),
        ({**ALPACA, "input": " i ", "system": "s"}, [Message("system", "s"), Message("user", "q\n\n i "), ASKED[1]]),
    ],
)
def test_alpaca(row: dict[str, Any], messages: list[Message]) -> None:
    assert FORMATS["alpaca"].parse(row) == messages


def test_messages_keep_roles_and_white_space() -> None:
    turns = [("system", " s "), ("user", "q\n"), ("assistant", ""), ("tool", "42"), ("assistant", " a")]
    row = {"messages": [{"role": role, "content": content, "name": "x"} for role, content in turns]}
    assert FORMATS["messages"].parse(row) == [Message(*turn) for turn in turns]


def test_assistant_turn_without_text_is_empty() -> None:
    row = {
        "messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": None}, {"role": "assistant"}]
    }
    assert [message.content for message in FORMATS["messages"].parse(row)] == ["q", "", ""]


@pytest.mark.parametrize(
    ("name", "row", "words"),
    [
        ("prompt_completion", {"prompt": "q"}, "field 'completion' is missing"),
        ("prompt_completion", {"prompt": 3, "completion": "a"}, "field 'prompt' is int, not text"),
        ("prompt_completion", {"prompt": None, "completion": "a"}, "field 'prompt' is NoneType, not text"),
        ("alpaca", {"instruction": "q", "output": "a", "input": ["x"]}, "field 'input' is list, not text"),
        ("messages", {"messages": "hi"}, "field 'messages' is str, not a list of messages"),
        ("messages", {}, "field 'messages' is NoneType"),
        ("messages", {"messages": [TURNS[0], "hi"]}, r"messages\[2\] is not an object"),
        ("messages", {"messages": [{"content": "hi"}]}, r"messages\[1\] is not an object with 'role'"),
        ("messages", {"messages": [{"role": "human", "content": "hi"}]}, r"messages\[1\] has the role 'human'.*user"),
        ("messages", {"messages": [{"role": "user", "content": None}]}, r"messages\[1\] has content of type NoneType"),
        ("messages", {"messages": [{"role": "user", "content": ["x"]}]}, r"messages\[1\] has content of type list"),
        ("prompt_completion", {"prompt": [{"role": "bot"}], "completion": "a"}, r"prompt\[1\] has the role 'bot'"),
    ],
)
def test_field_that_does_not_fit_is_named(name: str, row: dict[str, Any], words: str) -> None:
    with pytest.raises(RowError, match=words):
        FORMATS[name].parse(row)


@pytest.mark.parametrize("row", [2, DETECT_ROWS + 1])
def test_parse_fault_names_file_row_and_format(tmp_path: Path, row: int) -> None:
    rows: list[dict[str, Any]] = [dict(PAIR) for _ in range(DETECT_ROWS + 1)]
    rows[row - 1] = {"prompt": "q", "completion": 3}
    with pytest.raises(DataError) as caught:
        load(tmp_path, rows)
    start = f"{tmp_path / 'rows.jsonl'}: row {row} does not fit the format 'prompt_completion': field 'completion'"
    assert str(caught.value).startswith(start)


def test_row_of_another_shape_after_the_detected_ones_is_still_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=rf"row {DETECT_ROWS + 3} .*field 'prompt' is missing"):
        load(tmp_path, [PAIR] * (DETECT_ROWS + 2) + [CHAT])


def test_columns_rename_before_the_format_is_seen(tmp_path: Path) -> None:
    rows = [{"question": "q", "answer": "a", "prompt": "not this", "id": 1}]
    examples, report = load(tmp_path, rows, columns={"prompt": "question", "completion": "answer"})
    assert [example.messages for example in examples] == [tuple(ASKED)]
    assert report.format == "prompt_completion"
    assert report.ignored_columns == ["prompt", "id"]


def test_columns_may_swap_names() -> None:
    swapped = rename_columns(
        [{"prompt": "a", "completion": "q"}], {"prompt": "completion", "completion": "prompt"}, PATH
    )
    assert swapped == [PAIR]


def test_wrong_column_is_named_with_those_that_are_there(tmp_path: Path) -> None:
    rows = [{"question": "q", "answer": "a"}, {"question": "q", "reply": "a"}]
    with pytest.raises(DataError) as caught:
        load(tmp_path, rows, columns={"prompt": "question", "completion": "answer"})
    message = str(caught.value)
    assert "row 2 has no column 'answer'" in message
    assert "'question', 'reply'" in message
    assert "data.columns" in message


def test_ignored_columns_are_listed_once(tmp_path: Path) -> None:
    _, report = load(tmp_path, [{**PAIR, "id": 1}, {**PAIR, "id": 2, "source": "web", "system": "s"}])
    assert report.ignored_columns == ["id", "source"]


def test_column_named_like_a_word_of_the_description_is_ignored_by_name(tmp_path: Path) -> None:
    _, report = load(tmp_path, [{**ALPACA, "and": 1, "optionally": 2}])
    assert report.ignored_columns == ["and", "optionally"]
