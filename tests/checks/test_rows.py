"""Faults of single rows: what each check finds, and what it does not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from lamina.chat.message import Message, ToolCall
from lamina.checks.findings import Severity
from lamina.checks.kinds import CHECKS
from lamina.checks.row import CheckedRow
from lamina.data.example import Kind
from lamina.data.read.rows import FAULTS, REMARKS, Fault
from lamina.data.sequences import ANSWERS
from tests.support.checks import chat, check, checked, encoded, found, row, text
from tests.support.models_zoo import build_tokenizer

USER, ASSISTANT = Message("user", "What is it?"), Message("assistant", "It is a thing.")
TOOLS = (
    {
        "type": "function",
        "function": {
            "name": "search",
            "parameters": {"properties": {"query": {"type": "string"}}, "required": ["query"]},
        },
    },
)


def varied(count: int, side: str = "train") -> list[CheckedRow]:
    """Rows of words that have nothing in common."""
    rng = np.random.default_rng(len(side))
    words = ["".join(rng.choice(list("abcdefghijklmnopqrstuvwxyz"), 7)) for _ in range(40 * count)]
    return [
        row(" ".join(words[40 * n : 40 * n + 25]), " ".join(words[40 * n + 25 : 40 * n + 40]), side=side)
        for n in range(count)
    ]


def test_every_file_of_checks_is_found() -> None:
    assert {"reading", "near_duplicates", "leakage", "private_data", "vocabulary"} <= set(CHECKS)
    assert not any(name.startswith("_") for name in CHECKS)


def test_good_rows_give_no_errors_and_no_warnings() -> None:
    report = check(varied(220))
    assert [finding.code for finding in report.findings] == []
    assert report.facts["rows"] == report.facts["train_rows"] == 220


@pytest.mark.parametrize("code", FAULTS)
def test_a_row_that_cannot_be_read_is_an_error(code: str) -> None:
    fault = checked("a.jsonl", 1, 3, fault=Fault(code, 1, 3, "broken here", '{"a'))
    report = check([fault, row("a", "b")])
    finding = report.find(code)
    assert finding and finding.severity is Severity.ERROR and finding.count == 1
    assert finding.examples[0].detail == "broken here" and finding.examples[0].excerpt == '{"a'
    assert report.errors


@pytest.mark.parametrize("code", REMARKS)
def test_a_remark_is_no_error(code: str) -> None:
    report = check([row("a", "b", remarks=(code,)), row("c", "d")])
    finding = report.find(code)
    assert finding and finding.severity is not Severity.ERROR and found(report, code) == [1]
    assert not report.errors


def test_misfits_and_refusals_are_errors() -> None:
    misfit = checked("a.jsonl", 1, 1, value={"odd": "columns"}, misfit="there is no answer column")
    refused = row("hello", "there", refusal="the template wants a user turn first")
    report = check([misfit, refused, row("c", "d")])
    assert {finding.code for finding in report.errors} == {"misfit", "template_refusal"}
    assert found(report, "misfit") == [1] and found(report, "template_refusal") == [2]


def test_empty_rows_are_warnings_and_rows_beyond_max_rows_are_not() -> None:
    report = check(
        [row("a", "", drop_reason="empty_answer"), row("c", "d"), row("e", "f", drop_reason="after_max_rows")]
    )
    empty, beyond = report.find("empty_answer"), report.find("after_max_rows")
    assert empty and empty.severity is Severity.WARNING and empty.count == 1
    assert beyond and beyond.severity is Severity.INFO


def test_no_usable_row_is_an_error() -> None:
    empty = row("a", "", drop_reason="empty_answer")
    assert [finding.code for finding in check([empty]).errors] == ["rows_lost", "no_usable_row"]
    assert [finding.code for finding in check([]).errors] == ["no_usable_row"]
    assert check([row("a", "b")]).find("no_usable_row") is None


@pytest.mark.parametrize(
    ("code", "messages"),
    [
        ("two_user_turns", (USER, USER, ASSISTANT)),
        ("two_assistant_turns", (USER, ASSISTANT, ASSISTANT)),
        ("no_answer", (USER,)),
        ("empty_turn", (Message("user", " "), ASSISTANT)),
        ("system_not_first", (USER, Message("system", "Be kind."), ASSISTANT)),
        ("assistant_first", (Message("system", "Be kind."), ASSISTANT, USER, ASSISTANT)),
        ("tool_without_call", (USER, Message("tool", "42"), ASSISTANT)),
        (
            "call_without_result",
            (USER, Message("assistant", "", (ToolCall("search", {"query": "x"}),)), USER, ASSISTANT),
        ),
    ],
)
def test_conversation_faults(code: str, messages: tuple[Message, ...]) -> None:
    good = (Message("system", "Be kind."), USER, ASSISTANT, USER, ASSISTANT)
    report = check([chat(good), chat(messages)])
    assert found(report, code) == [2]


@pytest.mark.parametrize(
    ("code", "call"),
    [
        ("unknown_tool", ToolCall("find", {"query": "x"})),
        ("wrong_arguments", ToolCall("search", {})),
        ("wrong_arguments", ToolCall("search", {"query": "x", "page": 2})),
    ],
)
def test_calls_that_no_tool_answers(code: str, call: ToolCall) -> None:
    def calling(made: ToolCall) -> CheckedRow:
        return chat(
            (USER, Message("assistant", "", (made,)), Message("tool", "42"), ASSISTANT), example={"tools": TOOLS}
        )

    report = check([calling(ToolCall("search", {"query": "x"})), calling(call)])
    assert found(report, code) == [2]


def test_far_longer_and_far_shorter_rows_are_told_of() -> None:
    rows = varied(100)
    rows[30] = row("x", "y")
    rows[60] = row("long " * 20_000, "y")
    report = check(rows)
    assert found(report, "short_row") == [31] and found(report, "long_row") == [61]
    assert check(varied(100)).find("long_row") is None


def test_labels_that_read_like_a_slip() -> None:
    answers = ["positive", "negative", "neutral"] * 60
    answers[10], answers[70], answers[110] = "postive", "Negative.", "unclear"
    report = check([row(f"Review number {n}: {n * 7919}", answer) for n, answer in enumerate(answers)])
    assert found(report, "label_slip") == [11, 71]
    assert report.facts["labels"]["neutral"] == 59


def test_labels_that_differ_in_a_digit_or_a_prefix_are_no_slips() -> None:
    answers = ["class_1", "legal"] * 60
    answers[10], answers[71] = "class_2", "illegal"
    report = check([row(f"Case {n}: {n * 7919}", answer) for n, answer in enumerate(answers)])
    assert report.find("label_slip") is None and len(report.facts["labels"]) == 4


def test_answers_in_words_are_no_labels() -> None:
    assert "labels" not in check(varied(100)).facts


def test_lopsided_feedback() -> None:
    def feedback(wanted: int, unwanted: int) -> list[CheckedRow]:
        labels = [True] * wanted + [False] * unwanted
        return [
            chat((USER, Message("assistant", f"{n}")), example={"kind": Kind.UNPAIRED_PREFERENCE, "label": label})
            for n, label in enumerate(labels)
        ]

    assert check(feedback(95, 5)).find("unpaired_imbalance")
    assert check(feedback(60, 40)).find("unpaired_imbalance") is None


def test_other_languages() -> None:
    english = (
        "The committee met in the morning to talk about the new library, and in the end nobody could agree on the "
        "colour of the door or the height of the shelves."
    )
    german = (
        "Der Ausschuss traf sich am Morgen, um über die neue Bibliothek zu sprechen, und am Ende konnte sich niemand "
        "auf die Farbe der Tür oder die Höhe der Regale einigen."
    )
    code = "```python\nfor i in range(10):\n    print(i * i)\n```\n" * 5
    numbers = "12 * 34 = 408, 408 + 17 = 425, 425 / 5 = 85. " * 5
    rows = [row(f"{n} {english}", "Yes.") for n in range(98)] + [row(code, code), row(numbers, numbers)]
    rows[40] = row(german, "Ja.")
    rows[50] = row("Bonjour mes amis", "Salut !")  # too short to identify
    report = check(rows)
    assert found(report, "other_language") == [41] and report.find("other_language").examples[0].detail == "de"
    half = [row(f"{n} {english if n % 2 else german}", "Yes.") for n in range(100)]
    assert check(half).find("other_language") is None


def test_refusals_and_talk_of_being_a_model() -> None:
    report = check(
        [
            row("How do I pick a lock?", "I'm sorry, but I can't assist with that."),
            row("Who are you?", "As an AI language model, I have no name."),
            row("Tell a story.", "She was sorry that she could not help him, and he went home."),
            row("Explain RAID.", "I cannot recommend RAID 0 where the data matters."),
            row("Be brief.", "The AI winter came in 1974."),
        ]
    )
    assert found(report, "refusal") == [1] and found(report, "speaks_of_itself") == [2]


def test_sentences_that_many_answers_share() -> None:
    rows = varied(100)
    for n in range(30):
        rows[n] = row(f"Question {n * 7919}", f"{rows[n].read.example.answer}. I hope this helps you!")
    report = check(rows)
    finding = report.find("boilerplate_end")
    assert finding and finding.count == 30 and "I hope this helps you!" in finding.title
    assert report.find("boilerplate_begin") is None
    labels = [row(f"Question {n * 7919}", "This is a positive review.") for n in range(100)]
    assert check(labels).find("boilerplate_end") is None


# ---- tokens


def test_tokens_are_not_looked_at_without_a_tokenizer() -> None:
    report = check([row("a", "b")])
    assert report.facts["tokens_checked"] is False and "train_tokens" not in report.facts


@pytest.mark.parametrize(("overlong", "severity"), [("drop", "warning"), ("cut", "warning"), ("split", "info")])
def test_rows_that_are_too_long(overlong: str, severity: str) -> None:
    rows = [row("a", f"{n}", encoded=encoded(tokens, 10)) for n, tokens in enumerate((64, 65, 20, 30))]
    report = check(rows, tokenizer=build_tokenizer(), overlong=overlong)
    finding = report.find("longer_than_max_length")
    assert finding and found(report, "longer_than_max_length") == [2] and finding.severity.value == severity
    tokens = report.facts["train_tokens"]
    assert (tokens["tokens"], tokens["shortest"], tokens["longest"]) == (179, 20, 65)
    assert sum(tokens["histogram"]["counts"]) == 4


def test_supervised_share_counts_what_is_trained_on() -> None:
    def share(overlong: str) -> float:
        rows = [row("a", "b", encoded=encoded(40, 10)), row("c", "d", encoded=encoded(80, 20))]
        return check(rows, tokenizer=build_tokenizer(), overlong=overlong).facts["supervised_share"]

    assert share("drop") == pytest.approx(10 / 40)
    assert share("cut") == pytest.approx((10 + 4) / (40 + 64))
    assert share("split") == pytest.approx(30 / 120)


def test_rows_of_which_nothing_is_supervised_are_named() -> None:
    long = row("a", "b", encoded=encoded(100, 20))
    rows = [row("c", "d", encoded=encoded(50, 9)), row("e", "f", encoded=encoded(50, 0)), long]
    for overlong, named in (("cut", [2, 3]), ("split", [2]), ("drop", [2])):
        assert found(check(rows, tokenizer=build_tokenizer(), overlong=overlong), "no_supervised_tokens") == named


def test_rows_that_the_run_has_no_loss_for() -> None:
    pair = chat(
        [Message("user", "q"), Message("assistant", "a")],
        example={"kind": Kind.PREFERENCE, "rejected": (Message("assistant", "b"),)},
    )
    assert found(check([row("a", "b"), pair], kinds=ANSWERS.kinds), "no_loss_for_it") == [2]
    assert check([row("a", "b"), pair]).find("no_loss_for_it") is None


def test_a_preference_is_as_long_as_its_longer_answer() -> None:
    pair = replace(row("a", "b", encoded=encoded(50, 9)), rejected=encoded(80, 39))
    assert found(check([pair], tokenizer=build_tokenizer()), "longer_than_max_length") == [1]


def test_nothing_supervised_is_an_error_and_little_a_warning() -> None:
    tokenizer = build_tokenizer()
    assert check([row("a", "b", encoded=encoded(50, 0))], tokenizer=tokenizer).find("nothing_supervised")
    little = check([row("a", "b", encoded=encoded(50, 1))], tokenizer=tokenizer)
    assert little.find("little_supervised") and not little.errors
    assert check([row("a", "b", encoded=encoded(50, 5))], tokenizer=tokenizer).find("little_supervised") is None


def test_packing_efficiency() -> None:
    rows = [row("a", f"{n}", encoded=encoded(40, 10)) for n in range(8)]
    facts = check(rows, tokenizer=build_tokenizer(), batch_size=1).facts
    assert facts["micro_batches"] == 8 and facts["packing_efficiency"] == pytest.approx(40 / 64)
    assert check(rows, tokenizer=build_tokenizer(), batch_size=1).find("packing_efficiency")
    assert check(rows, tokenizer=build_tokenizer(), batch_size=5).find("packing_efficiency") is None
    assert "packing_efficiency" not in check(rows, tokenizer=build_tokenizer(), packing=False).facts


def test_words_that_the_tokenizer_shatters() -> None:
    rows = [row("a", f"word{n}", encoded=encoded(40, 10)) for n in range(8)]  # a byte-level tokenizer
    report = check(rows, tokenizer=build_tokenizer())
    assert report.find("shattered_words") and report.facts["shattered_words"]["word"] == {"count": 8, "pieces": 5}
    rare = [row("a", word, encoded=encoded(40, 10)) for word in ("one", "two", "six")]
    assert check(rare, tokenizer=build_tokenizer()).find("shattered_words") is None


def test_tokens_that_the_tokenizer_does_not_know() -> None:
    tokenizer = build_tokenizer()
    rows = [row("a", f"{n}", encoded=encoded(40, 10)) for n in range(4)]
    assert check(rows, tokenizer=tokenizer).find("unknown_tokens") is None  # it has no such token
    tokenizer.unk_token = tokenizer.convert_ids_to_tokens(7)
    report = check(rows, tokenizer=tokenizer)
    assert report.facts["unknown_tokens_share"] == pytest.approx(1 / 40) and report.find("unknown_tokens")


def test_too_few_examples() -> None:
    assert check(varied(199)).find("few_examples")
    assert check(varied(200)).find("few_examples") is None


def test_plain_text_has_no_conversation_faults() -> None:
    assert [finding.code for finding in check([text("Some words about nothing.")]).findings] == ["few_examples"]


def test_progress_ends_with_the_number_of_rows() -> None:
    told: list[int] = []
    check(varied(1001), progress=told.append)
    assert told == [500, 1000, 1001]
