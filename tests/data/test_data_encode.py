"""`encode_examples` and `supervised_mask`: from spans of characters to tokens in the loss."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from tests.models_zoo import build_tokenizer
from transformers import PreTrainedTokenizerBase

from lamina.data.encode import TOKENIZE_ROWS, encode_examples, supervised_mask
from lamina.data.example import EncodedExample, Example, Message
from lamina.data.template import ChatTemplate, Span, build_template
from lamina.errors import DataError, ModelError

TURNS = (
    Message("system", "be kind"),
    Message("user", "one?"),
    Message("assistant", "first"),
    Message("user", "two?"),
    Message("assistant", "second"),
)


@pytest.fixture(scope="module")
def template(tokenizer: PreTrainedTokenizerBase) -> ChatTemplate:
    return build_template(tokenizer)


def mask(offsets: list[tuple[int, int]], *spans: tuple[int, int]) -> list[bool]:
    array = np.array(offsets, dtype=np.int64).reshape(-1, 2)
    return supervised_mask(array, [Span(*span) for span in spans]).tolist()


def encode(template: ChatTemplate, train_on: str, *turns: Message) -> EncodedExample:
    (encoded,) = encode_examples([Example(turns, row=7)], template, train_on)
    return encoded


def taught(template: ChatTemplate, train_on: str, *turns: Message) -> str:
    encoded = encode(template, train_on, *turns)
    return str(template.tokenizer.decode(encoded.input_ids[encoded.supervised]))


def test_tokens_inside_at_the_edges_and_outside_of_a_span() -> None:
    offsets = [(0, 3), (3, 5), (5, 8), (8, 9), (9, 12)]
    assert mask(offsets, (5, 9)) == [False, False, True, True, False]
    assert mask(offsets, (4, 6)) == [False, True, True, False, False]
    assert mask(offsets, (3, 5), (9, 12)) == [False, True, False, False, True]
    assert mask(offsets) == [False] * 5


def test_white_space_left_out_of_the_offsets_belongs_to_the_token_after_it() -> None:
    # "Q: hi  you": the tokens " hi" and "  you" are reported as (3, 5) and (7, 10).
    offsets = [(0, 2), (3, 5), (7, 10)]
    assert mask(offsets, (2, 10)) == [False, True, True]
    assert mask(offsets, (2, 3)) == [False, True, False]  # the answer is the space alone
    assert mask(offsets, (5, 7)) == [False, False, True]
    assert mask(offsets, (3, 5)) == [False, True, False]  # what follows the answer is not in it


def test_several_tokens_of_one_character_are_all_in_its_span() -> None:
    offsets = [(0, 1), (1, 2), (1, 2), (1, 2), (1, 2), (2, 3)]
    assert mask(offsets, (1, 2)) == [False, True, True, True, True, False]


@pytest.mark.parametrize("spans", [[(0, 9)], [(0, 1), (1, 9)]])
def test_the_first_token_is_never_supervised(spans: list[tuple[int, int]]) -> None:
    assert mask([(0, 3), (3, 6), (6, 9)], *spans) == [False, True, True]
    assert mask([(0, 3)], *spans) == [False]
    assert mask([], *spans) == []


@pytest.mark.parametrize(
    ("train_on", "text"),
    [
        ("assistant", "first<|im_end|>second<|im_end|>"),
        ("completions", "second<|im_end|>"),
        (
            "all",
            "system\nbe kind<|im_end|>\n<|im_start|>user\none?<|im_end|>\n<|im_start|>assistant\nfirst<|im_end|>\n"
            "<|im_start|>user\ntwo?<|im_end|>\n<|im_start|>assistant\nsecond<|im_end|>\n",
        ),
    ],
)
def test_train_on(template: ChatTemplate, train_on: str, text: str) -> None:
    assert taught(template, train_on, *TURNS) == text


@pytest.mark.parametrize("train_on", ["assistant", "completions", "all"])
def test_a_text_that_begins_with_the_answer_leaves_its_first_token_out(train_on: str) -> None:
    source = "{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}"
    template = ChatTemplate(build_tokenizer(), "model", source)
    assert taught(template, train_on, Message("assistant", "abc")) == "bc<|im_end|>"


def test_encoded_example_has_rows_dtypes_and_counts(template: ChatTemplate) -> None:
    encoded = encode(template, "assistant", *TURNS)
    assert (encoded.input_ids.dtype, encoded.supervised.dtype) == (np.int32, np.bool_)
    assert encoded.row == 7
    assert len(encoded) == len(encoded.supervised)
    assert encoded.supervised_tokens == len("first") + len("second") + 2
    text = template.render(TURNS)
    assert encoded.input_ids.tolist() == template.tokenizer(text, add_special_tokens=False).input_ids


def test_order_and_rows_are_kept_over_chunks(template: ChatTemplate) -> None:
    count = TOKENIZE_ROWS + 5
    examples = [Example((Message("user", "q"), Message("assistant", f"a{i}")), row=3 * i) for i in range(count)]
    encoded = list(encode_examples(examples, template, "assistant"))
    assert [item.row for item in encoded] == [3 * i for i in range(count)]
    for index in (0, TOKENIZE_ROWS - 1, TOKENIZE_ROWS, count - 1):
        ids = encoded[index].input_ids[encoded[index].supervised]
        assert template.tokenizer.decode(ids) == f"a{index}<|im_end|>"


def test_slow_tokenizer_is_refused() -> None:
    slow = cast(Any, SimpleNamespace(is_fast=False))
    with pytest.raises(ModelError, match=r"SimpleNamespace is a slow one.*tokenizer\.json"):
        list(encode_examples([], ChatTemplate(slow, "model", ""), "assistant"))


def test_refused_conversation_is_named_by_its_row() -> None:
    source = "{% if messages[0].role == 'system' %}{{ raise_exception('no system turns') }}{% endif %}"
    source += "{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}"
    template = ChatTemplate(build_tokenizer(), "model", source)
    with pytest.raises(DataError, match="row 7"):
        encode(template, "assistant", *TURNS)


@pytest.mark.parametrize("broken", ["question", "answer"])
def test_text_with_half_a_surrogate_pair_is_a_data_error(template: ChatTemplate, broken: str) -> None:
    texts = {"question": "q", "answer": "a"} | {broken: "cut \ud83d emoji"}
    with pytest.raises(DataError, match="row 7"):
        encode(template, "assistant", Message("user", texts["question"]), Message("assistant", texts["answer"]))
