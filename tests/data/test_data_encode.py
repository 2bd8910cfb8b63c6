"""`encode_examples`: from examples to tokens, and which of them are in the loss."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from tests.models_zoo import CHATML, build_tokenizer
from transformers import PreTrainedTokenizerBase

from lamina.data.encode import TOKENIZE_ROWS, encode_examples
from lamina.data.example import EncodedExample, Example, Message
from lamina.data.template import ChatTemplate, build_template
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


def encode(template: ChatTemplate, train_on: str, *turns: Message) -> EncodedExample:
    (encoded,) = encode_examples([Example(turns, row=7)], template, train_on)
    return encoded


def taught(template: ChatTemplate, train_on: str, *turns: Message) -> str:
    encoded = encode(template, train_on, *turns)
    return str(template.tokenizer.decode(encoded.input_ids[encoded.supervised]))


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


def test_padding_and_truncation_that_others_asked_for_do_not_count() -> None:
    template = ChatTemplate(build_tokenizer(), "model", CHATML)
    turns = [(Message("user", "q"), Message("assistant", text)) for text in ("short", "a much longer answer")]
    examples = [Example(pair, row) for row, pair in enumerate(turns, start=1)]
    before = list(encode_examples(examples, template, "assistant"))
    template.tokenizer(["a", "bb"], padding=True, truncation=True, max_length=2)
    after = list(encode_examples(examples, template, "assistant"))
    assert [row.input_ids.tolist() for row in after] == [row.input_ids.tolist() for row in before]


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
