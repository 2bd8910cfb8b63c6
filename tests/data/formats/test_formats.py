"""Formats: detecting them, parsing rows, and the error for a row that does not fit."""

from __future__ import annotations

import decimal
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lamina.chat.message import Message, ToolCall
from lamina.config import SourceConfig
from lamina.data.example import Example, Kind
from lamina.data.formats import DETECT_ROWS, FORMATS, choose_format
from lamina.data.formats._fields import RowError, message_list
from lamina.data.read import find_files
from lamina.data.source import SourceReader, usable_part, used_examples
from lamina.errors import ConfigError, DataError

NAME = "rows.jsonl"
TURNS = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
CHAT, PAIR, ALPACA = {"messages": TURNS}, {"prompt": "q", "completion": "a"}, {"instruction": "q", "output": "a"}
ASKED = [Message("user", "q"), Message("assistant", "a")]
CONTEXT = [replace(turn, supervised=False) if turn.role == "assistant" else turn for turn in ASKED]


def error_of(rows: list[dict[str, Any]], wanted: str = "auto") -> str:
    with pytest.raises(DataError) as caught:
        choose_format(rows, wanted, NAME)
    assert str(caught.value).startswith(NAME)
    return str(caught.value)


def load(tmp_path: Path, rows: list[dict[str, Any]], **settings: Any) -> Any:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (file,) = find_files(str(path))
    reader = SourceReader(file, SourceConfig(path=str(path), **settings))
    return [row.example for row in used_examples(reader)], reader


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
    assert choose_format([row] * 3, "auto", NAME) is FORMATS[name]


@pytest.mark.parametrize("gap", [None, ""], ids=["null", "empty"])
@pytest.mark.parametrize(
    ("row", "name"),
    [
        (CHAT, "messages"),
        (PAIR, "prompt_completion"),
        (ALPACA, "alpaca"),
        ({"text": "t"}, "text"),
        ({"prompt": "q", "chosen": "a", "rejected": "b"}, "preference"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_table_that_joins_several_formats_has_empty_columns(row: dict[str, Any], name: str, gap: str | None) -> None:
    columns = ("messages", "prompt", "completion", "chosen", "rejected", "instruction", "output", "text")
    assert choose_format([{**dict.fromkeys(columns, gap), **row}] * 3, "auto", NAME) is FORMATS[name]


@pytest.mark.parametrize("name", FORMATS)
def test_format_that_is_asked_for_is_taken_unseen(name: str) -> None:
    assert choose_format([{"x": 1}], name, NAME) is FORMATS[name]


def test_rows_that_fit_several_formats_are_not_guessed_about() -> None:
    message = error_of([{**PAIR, **ALPACA}] * 2)
    assert "more than one format: alpaca, prompt_completion" in message
    assert "data.format" in message
    assert choose_format([{**PAIR, **ALPACA}, PAIR, PAIR], "auto", NAME) is FORMATS["prompt_completion"]


def test_unknown_columns_are_listed_with_the_known_formats() -> None:
    message = error_of([{"question": "q", "answer": "a"}])
    assert "'question', 'answer'" in message
    assert all(name in message for name in (*FORMATS, "data.columns"))


def test_messages_that_are_no_list_are_not_taken_for_a_conversation() -> None:
    assert "'messages'" in error_of([{"messages": "hello"}])


@pytest.mark.parametrize(
    ("common", "odd"),
    [(ALPACA, {"text": "x", "id": 1}), (ALPACA, CHAT), (CHAT, PAIR), (CHAT, ALPACA), (PAIR, CHAT)],
)
def test_odd_row_is_named_with_its_columns(tmp_path: Path, common: dict[str, Any], odd: dict[str, Any]) -> None:
    with pytest.raises(DataError, match="row 3 ") as caught:
        load(tmp_path, [common, common, odd, common, common])
    assert f"Its columns are {', '.join(map(repr, odd))}" in str(caught.value)
    mixed = error_of([common, common, odd, common, odd])
    assert "of the first 5, " in mixed
    assert f"row 3 has the columns {', '.join(map(repr, odd))}" in mixed


@pytest.mark.parametrize(
    ("row", "messages"),
    [
        (PAIR, ASKED),
        ({**PAIR, "system": "s"}, [Message("system", "s"), *ASKED]),
        ({**PAIR, "system": None}, ASKED),
        # Answers in a prompt are context, unless the data marks them.
        ({"prompt": TURNS * 2, "completion": "end"}, [*CONTEXT, *CONTEXT, Message("assistant", "end")]),
        (
            {"prompt": [TURNS[0], {**TURNS[1], "weight": 1}], "completion": "end"},
            [ASKED[0], replace(ASKED[1], supervised=True), Message("assistant", "end")],
        ),
        ({"prompt": "q", "completion": TURNS[1:]}, ASKED),
    ],
)
def test_prompt_completion(row: dict[str, Any], messages: list[Message]) -> None:
    assert FORMATS["prompt_completion"].parse(row, 7) == Example(tuple(messages), 7)


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
    assert FORMATS["alpaca"].parse(row, 7) == Example(tuple(messages), 7)


@pytest.mark.parametrize("name", ["messages", "sharegpt", "prompt_completion", "preference", "unpaired_preference"])
def test_chat_template_kwargs_of_a_row_are_kept(name: str) -> None:
    rows: dict[str, dict[str, Any]] = {
        "messages": {"messages": TURNS},
        "sharegpt": {"conversations": TURNS},
        "prompt_completion": PAIR,
        "preference": {"prompt": "q", "chosen": "a", "rejected": "b"},
        "unpaired_preference": {"messages": TURNS, "label": True},
    }
    given = {
        "enable_thinking": False,
        "xml_tools": ["a"],
        "python_tools": None,
    }  # null is how a table represents a missing value
    assert "chat_template_kwargs" in FORMATS[name].OPTIONAL_FIELDS
    for value in (given, json.dumps(given)):
        example = FORMATS[name].parse({**rows[name], "chat_template_kwargs": value}, 1)
        assert example.template_kwargs == {"enable_thinking": False, "xml_tools": ["a"]}
    for value in ({}, None, ""):
        assert FORMATS[name].parse({**rows[name], "chat_template_kwargs": value}, 1).template_kwargs == {}
    for value, words in (([1], "is list, not an object"), ({"tools": []}, "sets 'tools'"), ("{", "JSON")):
        with pytest.raises(RowError, match=words):
            FORMATS[name].parse({**rows[name], "chat_template_kwargs": value}, 1)


def test_answers_before_a_preference_are_context() -> None:
    whole = [*TURNS, {"role": "user", "content": "r"}]
    row = {
        "chosen": [*whole, {"role": "assistant", "content": "a"}],
        "rejected": [*whole, {"role": "assistant", "content": "b"}],
    }
    example = FORMATS["preference"].parse(row, 1)
    assert [turn.supervised for turn in example.messages] == [None, False, None, None]
    judged = FORMATS["unpaired_preference"].parse({"prompt": whole, "completion": "a", "label": 1}, 1)
    assert [turn.supervised for turn in judged.messages] == [None, False, None, None]


def test_messages_keep_roles_and_white_space() -> None:
    turns = [("system", " s "), ("user", "q\n"), ("assistant", ""), ("tool", "42"), ("assistant", " a")]
    row = {"messages": [{"role": role, "content": content, "name": "x"} for role, content in turns]}
    assert FORMATS["messages"].parse(row, 1).messages == tuple(Message(*turn, name="x") for turn in turns)


def test_assistant_turn_without_text_is_empty() -> None:
    row = {
        "messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": None}, {"role": "assistant"}]
    }
    assert [message.content for message in FORMATS["messages"].parse(row, 1).messages] == ["q", "", ""]


@pytest.mark.parametrize(
    ("name", "row", "words"),
    [
        ("prompt_completion", {"prompt": "q"}, "field 'completion' is missing"),
        ("prompt_completion", {"prompt": {"a": 1}, "completion": "a"}, "field 'prompt' is dict, not text"),
        ("preference", {"prompt": "q", "chosen": "a"}, "field 'rejected' is missing"),
        ("alpaca", {"instruction": "q", "output": "a", "input": ["x"]}, "field 'input' is list, not text"),
        ("messages", {"messages": "hi"}, "messages must be a list of messages in JSON, but cannot be parsed"),
        ("messages", {}, "field 'messages' is NoneType"),
        ("messages", {"messages": [TURNS[0], "hi"]}, r"messages\[2\] is not an object"),
        ("messages", {"messages": [{"content": "hi"}]}, r"messages\[1\] is not an object with 'role'"),
        ("messages", {"messages": [{"role": "bot", "content": "hi"}]}, r"messages\[1\] has the role 'bot'.*user"),
        ("messages", {"messages": [{"role": "user", "content": None}]}, r"messages\[1\] has content of type NoneType"),
        ("messages", {"messages": [{"role": "user", "content": ["x"]}]}, r"messages\[1\] has content of type list"),
        ("prompt_completion", {"prompt": [{"role": "bot"}], "completion": "a"}, r"prompt\[1\] has the role 'bot'"),
    ],
)
def test_field_that_does_not_fit_is_named(name: str, row: dict[str, Any], words: str) -> None:
    with pytest.raises(RowError, match=words):
        FORMATS[name].parse(row, 1)


@pytest.mark.parametrize("row", [2, DETECT_ROWS + 1])
def test_parse_fault_names_file_row_and_format(tmp_path: Path, row: int) -> None:
    rows: list[dict[str, Any]] = [dict(PAIR) for _ in range(DETECT_ROWS + 1)]
    rows[row - 1] = {"prompt": "q", "completion": [3]}
    with pytest.raises(DataError) as caught:
        load(tmp_path, rows)
    place = f"{tmp_path / 'rows.jsonl'}: row {row} (line {row})"
    start = f"{place} does not fit the format 'prompt_completion': completion[1] is not an object"
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


def test_columns_may_swap_names(tmp_path: Path) -> None:
    columns = {"prompt": "completion", "completion": "prompt"}
    examples, _ = load(tmp_path, [{"prompt": "a", "completion": "q"}], columns=columns)
    assert [example.messages for example in examples] == [tuple(ASKED)]


def test_columns_may_be_templates_over_the_row(tmp_path: Path) -> None:
    rows = [{"title": "T", "body": "B", "n": 3, "reply": "a", "other": 1}]
    columns = {"prompt": "{{ title }}: {{ body }}{% if n > 2 %}!{% endif %}", "completion": "reply"}
    examples, report = load(tmp_path, rows, columns=columns)
    assert [example.messages for example in examples] == [(Message("user", "T: B!"), Message("assistant", "a"))]
    assert report.ignored_columns == ["other"]
    with pytest.raises(DataError, match=r"row 1.*prompt fails on it.*'tilte' is undefined"):
        load(tmp_path, rows, columns={"prompt": "{{ tilte }}", "completion": "reply"})
    with pytest.raises(ConfigError, match=r"data\.columns\.prompt.*not a Jinja template"):
        load(tmp_path, rows, columns={"prompt": "{{ title", "completion": "reply"})


def test_wrong_column_is_named_with_those_that_are_there(tmp_path: Path) -> None:
    rows = [{"question": "q", "answer": "a"}, {"question": "q", "reply": "a"}]
    with pytest.raises(DataError) as caught:
        load(tmp_path, rows, columns={"prompt": "question", "completion": "answer"})
    message = str(caught.value)
    assert "row 2 (line 2) does not fit" in message
    assert "no column 'answer'" in message
    assert "'question', 'reply'" in message
    assert "data.columns" in message


def test_ignored_columns_are_listed_once(tmp_path: Path) -> None:
    _, report = load(tmp_path, [{**PAIR, "id": 1}, {**PAIR, "id": 2, "source": "web", "system": "s"}])
    assert report.ignored_columns == ["id", "source"]


def test_column_named_like_a_word_of_the_description_is_ignored_by_name(tmp_path: Path) -> None:
    _, report = load(tmp_path, [{**ALPACA, "and": 1, "optionally": 2}])
    assert report.ignored_columns == ["and", "optionally"]


def turn(role: str, content: str, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


SCHEMA = {"name": "f", "description": "d", "parameters": {"type": "object", "properties": {}}}


def test_sharegpt_with_calls_results_and_functions() -> None:
    row = {
        "conversations": [
            {"from": "human", "value": "q"},
            {"from": "function_call", "value": '{"name": "f", "arguments": {"x": [1]}}'},
            {"from": "observation", "value": "r"},
            {"from": "gpt", "value": "a"},
        ],
        "system": "s",
        "tools": json.dumps([SCHEMA]),
    }
    assert [name for name in FORMATS if FORMATS[name].detect(row)] == ["sharegpt"]
    assert FORMATS["sharegpt"].parse(row, 3) == Example(
        (
            Message("system", "s"),
            Message("user", "q"),
            Message("assistant", "", (ToolCall("f", {"x": [1]}),)),
            Message("tool", "r"),
            Message("assistant", "a"),
        ),
        3,
        tools=(SCHEMA,),
    )


def test_openai_tool_calls_with_arguments_as_json_text() -> None:
    function = {"name": "f", "arguments": '{"x": 1}'}
    row = {
        "messages": [
            turn("developer", "s"),
            turn("user", "q"),
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [{"id": "c1", "type": "function", "function": function}],
            },
            turn("tool", "r", tool_call_id="c1", name="f"),
            turn("assistant", "a", reasoning_content="hm", weight=0),
        ],
        "tools": [{"type": "function", "function": SCHEMA}],
    }
    example = FORMATS["messages"].parse(row, 1)
    assert example.messages == (
        Message("system", "s"),
        Message("user", "q"),
        Message("assistant", "", (ToolCall("f", {"x": 1}, "c1"),)),
        Message("tool", "r", name="f", tool_call_id="c1"),
        Message("assistant", "a", thinking="hm", supervised=False),
    )
    assert example.tools == ({"type": "function", "function": SCHEMA},)


def test_calls_in_turns_of_their_own_join_into_one() -> None:
    call = {"from": "function_call", "value": '{"name": "f", "arguments": {}}'}
    turns = [{"from": "human", "value": "q"}, call, call]
    (_, calls) = FORMATS["sharegpt"].parse({"conversations": turns}, 1).messages
    assert [item.name for item in calls.tool_calls] == ["f", "f"]


def test_parts_of_a_turn_are_joined_and_marked_ones_are_remembered() -> None:
    parts = [{"type": "text", "text": "ab"}, {"type": "text", "text": "cde", "train": True}]
    example = FORMATS["messages"].parse({"messages": [turn("user", "q"), {"role": "assistant", "content": parts}]}, 1)
    assert (example.messages[1].content, example.messages[1].marked) == ("abcde", ((2, 5),))


PAIR_TURNS = [turn("user", "q"), turn("assistant", "good")], [turn("user", "q"), turn("assistant", "bad")]


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "q", "chosen": "good", "rejected": "bad"},
        {"prompt": [turn("user", "q")], "chosen": [turn("assistant", "good")], "rejected": [turn("assistant", "bad")]},
        {
            "conversations": [{"from": "human", "value": "q"}],
            "chosen": {"from": "gpt", "value": "good"},
            "rejected": {"from": "gpt", "value": "bad"},
        },
        {"instruction": "q", "input": "", "chosen": "good", "rejected": "bad"},
        {"chosen": PAIR_TURNS[0], "rejected": PAIR_TURNS[1]},
        {"prompt": "q", "chosen": PAIR_TURNS[0], "rejected": PAIR_TURNS[1], "messages": PAIR_TURNS[0]},
    ],
    ids=["texts", "turns", "sharegpt", "alpaca", "implicit prompt", "ultrafeedback"],
)
def test_preference_wherever_its_prompt_stands(row: dict[str, Any]) -> None:
    assert [name for name in FORMATS if FORMATS[name].detect(row)] == ["preference"]
    example = FORMATS["preference"].parse({**row, "margin": 2}, 4)
    assert example.messages == (Message("user", "q"), Message("assistant", "good"))
    assert example.rejected == (Message("assistant", "bad"),)
    assert (example.kind, example.margin, example.row) == (Kind.PREFERENCE, 2.0, 4)
    assert example.alternatives[1] == (Message("user", "q"), Message("assistant", "bad"))


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"prompt": "q", "rejected": "b"}, "'chosen' is missing"),
        ({"prompt": "other", "chosen": PAIR_TURNS[0], "rejected": PAIR_TURNS[1]}, "do not both start with the prompt"),
        (
            {"prompt": "q", "chosen": "a", "rejected": [turn("user", "b")]},
            "rejected ends with a turn with the role 'user'",
        ),
        ({"chosen": PAIR_TURNS[0], "rejected": [*PAIR_TURNS[0], *PAIR_TURNS[1]]}, "rejected has 3 turns after"),
        ({"prompt": "q", "instruction": "q", "chosen": "a", "rejected": "b"}, "'prompt' and in 'instruction'"),
        ({"prompt": "q", "chosen": "a", "rejected": "b", "margin": "big"}, "'margin' is 'big', not a number"),
        (
            {"prompt": "q", "chosen": "a", "rejected": "b", "margin": float("nan")},
            "'margin' is nan, not a finite number",
        ),
        ({"prompt": "q", "chosen": "a", "rejected": "b", "margin": 10**400}, "not a finite number"),
        ({"prompt": "q", "chosen": PAIR_TURNS[0], "rejected": "b"}, "chosen has 2 turns and rejected 1"),
        (
            {"chosen": PAIR_TURNS[0], "rejected": [turn("user", "another"), turn("assistant", "b")]},
            "do not start with the same turn",
        ),
    ],
)
def test_preference_that_does_not_fit_is_named(row: dict[str, Any], words: str) -> None:
    with pytest.raises(RowError, match=words):
        FORMATS["preference"].parse(row, 1)


def test_preference_of_whole_conversations() -> None:
    asked = [turn("system", "be brief"), turn("user", "q1"), turn("assistant", "a1"), turn("user", "q2")]
    good, bad = [*asked, turn("assistant", "good")], [*asked, turn("assistant", "bad")]
    row = {"prompt": "q1", "system": "be brief", "chosen": good, "rejected": bad}
    example = FORMATS["preference"].parse(row, 1)
    assert [message.content for message in example.messages] == ["be brief", "q1", "a1", "q2", "good"]
    assert example.rejected == (Message("assistant", "bad"),)
    alike, reason = usable_part(FORMATS["preference"].parse(row | {"rejected": good}, 1))
    assert (alike.rejected, reason) == ((Message("assistant", "good"),), "same_answers")


def test_system_field_beside_messages() -> None:
    row = {"system": "be brief", "messages": [turn("user", "q"), turn("assistant", "a")]}
    asked = [message.content for message in FORMATS["messages"].parse(row, 1).messages]
    assert asked == ["be brief", "q", "a"]
    row["messages"] = [turn("system", "be brief"), *row["messages"]]
    assert [message.content for message in FORMATS["messages"].parse(row, 1).messages] == asked
    with pytest.raises(RowError, match="with different text"):
        FORMATS["messages"].parse(row | {"system": "be long"}, 1)


def test_rows_of_different_shapes_are_named_by_their_place() -> None:
    with pytest.raises(DataError, match=r"row 7 \(line 9\) has the columns 'prompt'"):
        choose_format([CHAT, PAIR], "auto", NAME, ["row 3 (line 4)", "row 7 (line 9)"])


@pytest.mark.parametrize(
    "turns",
    [CHAT, PAIR, {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}],
)
@pytest.mark.parametrize(
    ("label", "wanted"),
    [
        (True, True),
        ("false", False),
        *((each, True) for each in (1, 1.0, "1", "1.0", " TRUE ", decimal.Decimal("1.0"))),
    ],
)
def test_feedback_is_told_from_examples_by_its_label(turns: dict[str, Any], label: object, wanted: bool) -> None:
    row = {**turns, "label": label}
    assert [name for name in FORMATS if FORMATS[name].detect(row)] == ["unpaired_preference"]
    example = FORMATS["unpaired_preference"].parse(row, 1)
    assert (example.messages, example.kind, example.label) == (tuple(ASKED), Kind.UNPAIRED_PREFERENCE, wanted)


@pytest.mark.parametrize(
    ("label", "wanted"),
    [
        *((each, "1") for each in (1, 1.0, "1", "1.0", " 1.00 ", decimal.Decimal("1.0"))),
        *((each, "True") for each in (True, "True", "true", "TRUE")),
        *((each, "0.5") for each in (0.5, "0.5")),
        ("v1.0", "v1.0"),
        ("-3.0", "-3"),
    ],
)
def test_a_class_is_the_same_from_any_table(label: object, wanted: str) -> None:
    assert FORMATS["classification"].parse({"text": "t", "label": label}, 1).category == wanted


@pytest.mark.parametrize(
    ("form", "allowed"),
    [("unpaired_preference", "true and false, or 1 and 0"), ("classification", "the name or the number of a class")],
)
@pytest.mark.parametrize("label", [None, float("nan"), " ", [1]])
def test_a_label_that_is_none_is_named_with_what_is_allowed(form: str, allowed: str, label: object) -> None:
    with pytest.raises(RowError, match=rf"field 'label' is {re.escape(repr(label))}; allowed are {allowed}"):
        FORMATS[form].parse({**PAIR, "text": "t", "label": label}, 1)
    with pytest.raises(RowError, match=rf"field 'label' is missing; allowed are {allowed}"):
        FORMATS[form].parse({**PAIR, "text": "t"}, 1)


def test_a_label_that_is_no_judgement_leaves_the_row_an_example() -> None:
    assert [name for name in FORMATS if FORMATS[name].detect({**CHAT, "label": "sports"})] == ["messages"]


def test_text_is_told_from_rows_with_a_text_beside_other_fields() -> None:
    assert [name for name in FORMATS if FORMATS[name].detect({"text": "t", "url": "u"})] == ["text"]
    assert [name for name in FORMATS if FORMATS[name].detect({"text": "t", **PAIR})] == ["prompt_completion"]
    assert FORMATS["text"].parse({"text": " t "}, 2) == Example((), 2, Kind.TEXT, text=" t ")


def test_alpaca_history_becomes_earlier_turns() -> None:
    example = FORMATS["alpaca"].parse({**ALPACA, "history": [["p", "b"]]}, 1)
    assert example.messages == (Message("user", "p"), Message("assistant", "b"), *ASKED)


def test_turns_written_as_json_text_in_a_table() -> None:
    row = {"messages": json.dumps(TURNS)}
    assert choose_format([row], "auto", NAME) is FORMATS["messages"]
    assert FORMATS["messages"].parse(row, 1).messages == tuple(ASKED)


def test_mapped_field_that_the_format_does_not_read(tmp_path: Path) -> None:
    columns = {"messages": "messages", "label": "judged", "margin": "judged"}
    with pytest.raises(
        ConfigError, match=r"data.columns.margin: is mapped, but rows in the format 'unpaired_pref.*tools"
    ):
        load(tmp_path, [{**CHAT, "judged": True}], columns=columns)


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{% for i in range(9999) %}{% for j in range(9999) %}{% endfor %}{% endfor %}", "it takes more than 1 s"),
        ("{{ question * 10000000 }}", "it produces more than"),
        ("{{ [1, 2, 3] | random }}", "No filter named 'random'"),
        ("{{ question.__class__.__mro__ }}", "unsafe"),
        ("{{ answer }}", "'answer' is undefined"),
    ],
)
def test_column_template_within_bounds(tmp_path: Path, template: str, words: str) -> None:
    with pytest.raises((ConfigError, DataError), match=words):
        load(tmp_path, [{"question": "q"}], columns={"prompt": template, "completion": "question"})


def test_column_template_renders_as_jinja_itself(tmp_path: Path) -> None:
    template = "{% if hint %}\n{{ question }}\n{% endif %}\n  {{ options | join(', ') }}\n"
    row = {"question": "q", "hint": True, "options": ["a", "b"], "on": 1}
    examples, reader = load(tmp_path, [row], columns={"prompt": template, "completion": "question"})
    assert examples[0].messages[0].content == "\nq\n\n  a, b\n"
    assert reader.ignored_columns == ["on"]  # a column is not used because its name is part of a word


def test_a_call_in_a_turn_of_its_own_leaves_what_is_marked() -> None:
    said = [{"type": "text", "text": "Let me "}, {"type": "text", "text": "look.", "train": True}]
    call = {"role": "function_call", "content": '{"name": "look", "arguments": {}}'}
    _, turn = message_list([{"role": "user", "content": "q"}, {"role": "assistant", "content": said}, call], "messages")
    assert (turn.content, turn.marked, len(turn.tool_calls)) == ("Let me look.", ((7, 12),), 1)


@pytest.mark.parametrize("name", ["messages", "conversations", "prompt"])
def test_turns_that_python_printed_are_read(name: str) -> None:
    """`DataFrame.to_csv` writes lists as Python prints them."""
    turns = [{"role": "user", "content": "it's"}, {"role": "assistant", "content": "yes"}]
    given = turns if name != "prompt" else turns[:1]
    row = {name: repr(given), **({"completion": repr(turns[1:])} if name == "prompt" else {})}
    example = choose_format([row], "auto", "f").parse(row, 1)
    assert [(turn.role, turn.content) for turn in example.messages] == [("user", "it's"), ("assistant", "yes")]


def test_what_only_begins_like_printed_turns_stays_text() -> None:
    code = "[{'role': role} for role in roles]"
    example = FORMATS["prompt_completion"].parse({"prompt": "write it", "completion": code}, 1)
    assert example.messages[1].content == code


def test_messages_may_have_the_turns_of_sharegpt() -> None:
    row = {"messages": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "yo"}]}
    module = choose_format([row], "auto", "f")
    assert module is FORMATS["messages"]
    assert [turn.role for turn in module.parse(row, 1).messages] == ["user", "assistant"]


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"messages": "[{'role': 'user', 'content': 'a'} {'role': 'user'}]"}, r"df\.to_json\('rows\.jsonl'"),
        ({"messages": [{"speaker": "me", "text": "a"}]}, r"messages\[1\] .*it has the keys 'speaker', 'text'"),
        ({"messages": "hello"}, "messages must be a list of messages in JSON"),
        ({"input_ids": "[5, 6]"}, r"'input_ids' is not a list of whole numbers: it is the text '\[5, 6\]'"),
    ],
)
def test_what_is_wrong_inside_a_field_is_told(row: dict[str, Any], words: str) -> None:
    with pytest.raises(DataError, match=f"f: row 1 has the columns of the format .*{words}"):
        choose_format([row], "auto", "f")
