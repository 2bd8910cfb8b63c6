"""Rows that other tools rendered or tokenized: the same tokens and loss as from their messages, and one BOS and EOS."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerBase

from lamina.chat.bare import BARE
from lamina.chat.jinja import mentions_date
from lamina.chat.message import Message
from lamina.chat.template import ChatTemplate, build_template
from lamina.data.encode import encode_examples
from lamina.data.example import EncodedExample, Example, Kind
from lamina.data.formats import FORMATS
from lamina.data.formats._fields import RowError
from lamina.data.recognize import question_of, recognized
from lamina.errors import DataError
from tests.support.chat_families import FIXTURES, family_tokenizer, fast, words
from tests.support.datasets import Build, report_of
from tests.support.models_zoo import build_tokenizer


def template_of(name: str) -> ChatTemplate:
    return build_template(family_tokenizer(name, is_fixture=True))


TURNS = (
    Message("user", "q one"),
    Message("assistant", "first"),
    Message("user", "q two"),
    Message("assistant", "second"),
)


def text_row(text: str, template: ChatTemplate) -> Example:
    return recognized(FORMATS["text"].parse({"text": text}, 1), template)


def encode(example: Example, template: ChatTemplate, train_on: str = "assistant") -> EncodedExample:
    (encoded,) = encode_examples([example], template, train_on)
    return encoded


def same(one: EncodedExample, other: EncodedExample) -> bool:
    return one.input_ids.tolist() == other.input_ids.tolist() and one.supervised.tolist() == other.supervised.tolist()


def taught(encoded: EncodedExample, template: ChatTemplate) -> str:
    return str(template.tokenizer.decode(encoded.input_ids[encoded.supervised]))


def rendered(template: ChatTemplate, turns: Sequence[Message]) -> str:
    """As scripts do it: with transformers."""
    if mentions_date(template.source):  # today's, with transformers
        return template.render(turns)
    listed = [{"role": turn.role, "content": turn.content} for turn in turns]
    return str(template.tokenizer.apply_chat_template(listed, chat_template=template.source, tokenize=False))


@pytest.mark.parametrize("name", sorted(FIXTURES))
@settings(fast, max_examples=8)
@given(contents=st.lists(words, min_size=2, max_size=6))
def test_rendered_text_is_learned_as_its_messages_are(name: str, contents: list[str]) -> None:
    template = template_of(name)
    contents = contents[: len(contents) // 2 * 2]
    turns = [Message("user" if i % 2 == 0 else "assistant", text) for i, text in enumerate(contents)]
    from_text = text_row(rendered(template, turns), template)
    assert from_text.is_rendered
    for train_on in ("assistant", "completions", "all"):
        assert same(encode(from_text, template, train_on), encode(Example(tuple(turns), 1), template, train_on))


@pytest.mark.parametrize("name", sorted(FIXTURES))
def test_bos_and_the_last_stop_token_are_there_once(name: str) -> None:
    template = template_of(name)
    whole, stop, bos = rendered(template, TURNS), template.stop_token, str(template.tokenizer.bos_token or "")
    once = encode(text_row(whole, template), template)
    ended = whole.rstrip()
    assert ended.endswith(stop)
    more = [whole + stop, f"{ended}{stop}\n{stop}", ended.removesuffix(stop)]
    own = bos and template.answer_marks is not None and template.answer_marks.bos
    more += [bos + whole, whole.removeprefix(bos)] if own else []
    for text in more:
        again = encode(text_row(text, template), template)
        assert (
            taught(again, template).replace(f" {stop}", stop).split()
            == taught(once, template).replace(f" {stop}", stop).split()
        )
        assert again.input_ids.tolist().count(template.stop_token_id) == once.input_ids.tolist().count(
            template.stop_token_id
        )
        if own:
            assert again.input_ids.tolist()[:3] == once.input_ids.tolist()[:3]


def test_the_last_answer_is_asked_for_as_it_stands(template: ChatTemplate) -> None:
    example = text_row(rendered(template, TURNS), template)
    question = question_of(example, template)
    expected = template.question(TURNS)
    assert (question.prompt, question.written, question.answer) == (expected.prompt, expected.written, "second")


def test_text_of_another_template_is_not_taken_for_a_conversation(template: ChatTemplate) -> None:
    other = "<s>[INST] a [/INST] b </s>"  # no tokens of this tokenizer
    example = text_row(other, template)
    assert example.kind is Kind.TEXT
    assert taught(encode(example, template), template) == f"{other}<|im_end|>"[1:]


def test_text_of_another_template_is_reported(build: Build, tokenizer: PreTrainedTokenizerBase) -> None:
    notes = build([{"text": "<s>[INST] a [/INST] b </s>"}] * 3).report.notes
    assert any("3 texts look like conversations of another chat template" in note for note in notes)
    without = build_template(build_tokenizer(None))  # ChatML's tokens, and no template
    with pytest.raises(DataError, match=r"data\.chat_template=chatml"):
        encode(text_row("<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\na<|im_end|>\n", without), without)
    chatml = build_template(tokenizer, "chatml")
    assert text_row("<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\na<|im_end|>\n", chatml).is_rendered


@pytest.mark.parametrize("end", ["", "<|im_end|>", "<|im_end|>\n", " <|im_end|><|im_end|>"])
@pytest.mark.parametrize("start", ["", "<|endoftext|>", "<|endoftext|><|endoftext|>"])
def test_plain_text_has_one_bos_and_one_eos(template: ChatTemplate, start: str, end: str) -> None:
    encoded = encode(text_row(f"{start}a document{end}", template), template)
    text = str(template.tokenizer.decode(encoded.input_ids))
    begin = "<|endoftext|>" if start else ""  # the tokenizer itself adds none
    assert text.replace(" <|im_end|>", "<|im_end|>") == f"{begin}a document<|im_end|>"
    assert encoded.supervised.tolist() == [False] + [True] * (len(encoded) - 1)


def test_special_tokens_inside_plain_text_are_refused_unless_it_is_bare(template: ChatTemplate) -> None:
    text = "one<|endoftext|>two"
    with pytest.raises(DataError, match=r"data\.chat=false"):
        encode(text_row(text, template), template)
    bare = build_template(template.tokenizer, BARE)
    assert bare.tokenizer.decode(encode(text_row(text, bare), bare).input_ids) == f"{text}<|im_end|>"


def test_rendered_rows_split_by_their_prompts_and_are_reported(build: Build, template: ChatTemplate) -> None:
    texts = [rendered(template, [Message("user", f"q{i // 2}"), Message("assistant", f"a{i}")]) for i in range(40)]
    dataset = build([{"text": text} for text in texts], eval=0.25)
    file = report_of(dataset)
    assert (file.train_rows, file.eval_rows) == (30, 10)
    held_out = {(example.row - 1) // 2 for example in dataset.eval}
    assert held_out.isdisjoint({(example.row - 1) // 2 for example in dataset.train})
    assert any("40 texts are conversations" in note for note in dataset.report.notes)
    assert all(template.tokenizer.decode(e.input_ids[e.supervised]).startswith("a") for e in dataset.train)
    with pytest.raises(DataError, match="'drop'"):  # as conversations, and not divided as documents
        build([{"text": text} for text in texts], max_length=8, max_dropped=1.0)


# Rows of tokens


def tokens(row: dict[str, Any]) -> Example:
    return FORMATS["pretokenized"].parse(row, 1)


def learned(row: dict[str, Any], template: ChatTemplate) -> tuple[list[int], list[int]]:
    encoded = encode(recognized(tokens(row), template), template)
    return encoded.input_ids.tolist(), np.flatnonzero(encoded.supervised).tolist()


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"input_ids": [5, 6, 7]}, ([5, 6, 7], [1, 2])),
        ({"input_ids": [5, 6, 7], "labels": [-100, -100, 7]}, ([5, 6, 7], [2])),
        ({"input_ids": [5, 6, 7], "labels": [5, 6, 7]}, ([5, 6, 7], [1, 2])),
        ({"input_ids": [5, 6, 7, 0, 0], "attention_mask": [1, 1, 1, 0, 0]}, ([5, 6, 7], [1, 2])),
        ({"input_ids": [0, 5, 6], "attention_mask": [0, 1, 1], "labels": [-100, -100, 6]}, ([5, 6], [1])),
        ({"input_ids": [5, 6, 7], "completion_mask": [0, 1, 1]}, ([5, 6, 7], [1, 2])),
        ({"input_ids": [5, 6, 7], "completion_mask": [0, 1, 1], "assistant_masks": [0, 0, 1]}, ([5, 6, 7], [2])),
        ({"input_ids": [5, 6], "labels": None, "attention_mask": None}, ([5, 6], [1])),
    ],
)
def test_rows_of_tokens_are_taken_as_they_are(
    row: dict[str, Any], expected: tuple[list[int], list[int]], template: ChatTemplate
) -> None:
    assert FORMATS["pretokenized"].detect(row)
    assert learned(row, template) == expected


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ({"input_ids": [5, 6, 7], "labels": [6, 7, -100]}, "shifted by one"),
        ({"input_ids": [5, 6, 7], "labels": [5, 9, 7]}, r"labels\[1\] is 9, but input_ids\[1\] is 6"),
        ({"input_ids": [5, 6], "labels": [5]}, "has 1 numbers, but input_ids has 2"),
        ({"input_ids": [5, -1]}, "no token id"),
        ({"input_ids": [5, 2**31]}, "no token id"),
        ({"input_ids": [5, "6"]}, "whole numbers"),
        ({"input_ids": [1, 2, 3], "attention_mask": [1, 0, 1]}, "between ones"),
        ({"text": "a"}, "'input_ids' is missing"),
    ],
)
def test_tokens_that_cannot_be_used_say_why(row: dict[str, Any], why: str) -> None:
    with pytest.raises(RowError, match=why):
        tokens(row)


def test_tokens_of_the_text_column_are_preferred_as_in_trl(build: Build, tokenizer: PreTrainedTokenizerBase) -> None:
    rows = [{"text": f"row {i}", "input_ids": [3 + i, 9, 10], "labels": [-100, 9, 10]} for i in range(12)]
    dataset = build(rows, eval=0.25)
    file = report_of(dataset)
    assert (file.format, file.ignored_columns, file.rows) == ("pretokenized", ["text"], 12)
    assert dataset.train[0].input_ids.tolist()[1:] == [9, 10]
    assert dataset.train[0].supervised.tolist() == [False, True, True]


def test_all_padding_is_an_empty_row(build: Build) -> None:
    rows = [{"input_ids": [5, 6], "attention_mask": [1, 1]}, {"input_ids": [5], "attention_mask": [0]}]
    assert report_of(build(rows)).counts_dropped() == {"empty_text": 1}
    assert build_tokenizer().decode([5, 6])
