"""`encode_examples`: from examples to tokens, and which tokens are in the loss."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from lamina.chat.message import Message
from lamina.chat.template import ChatTemplate, build_template
from lamina.data.encode import TOKENIZE_ROWS, encode_examples
from lamina.data.example import EncodedExample, Example
from lamina.errors import DataError, ModelError
from tests.support.models_zoo import CHATML, build_tokenizer
from tests.support.tokenizers import BY_BYTES, OTHERS, STOP

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
    with pytest.raises(ModelError, match=r"SimpleNamespace is a slow tokenizer.*tokenizer\.json"):
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


def test_answers_of_a_prompt_are_learned_where_they_are_asked_for_alone(template: ChatTemplate) -> None:
    context = [*TURNS[:2], replace(TURNS[2], supervised=False), *TURNS[3:]]
    assert taught(template, "assistant", *context) == taught(template, "completions", *context) == "second<|im_end|>"
    assert "first" in taught(template, "all", *context)


def test_an_answer_that_is_not_asked_for_is_left_out_whatever_is_learned() -> None:
    """The history shows the first answer without the section that its generation prompt opens."""
    source = CHATML.replace("assistant\n{% endif %}", "assistant\n<think>\n{% endif %}")
    template = build_template(build_tokenizer(source))
    for train_on, number in (("assistant", (1,)), ("completions", ()), ("all", ())):
        encoded = encode(template, train_on, *TURNS)
        assert encoded.remarks.not_asked == number
        assert encoded.remarks.opening == "\n</think>\n\n"
        said = taught(template, train_on, *TURNS)
        assert "\n</think>\n\nsecond<|im_end|>" in said
        assert ("first" in said) is (train_on == "all")
    marked = [
        *TURNS[:2],
        replace(TURNS[2], marked=((0, 2),), supervised=True),
        *TURNS[3:4],
        replace(TURNS[4], marked=((0, 2),)),
    ]
    assert taught(template, "marked", *marked) == "se"
    assert encode(template, "marked", *marked).remarks.not_asked == (1,)


SPACED = "{% for m in messages %}{{ m.role | upper + ': ' + m.content + ' ' }}{% endfor %}"
TRAILING = {
    "white space at the end of the prompt": SPACED + "{% if add_generation_prompt %}{{ 'ASSISTANT: ' }}{% endif %}",
    "white space before the answer": SPACED + "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}",
    "line ends": SPACED.replace(": '", ":\n\n'") + "{% if add_generation_prompt %}{{ 'ASSISTANT:\n\n' }}{% endif %}",
}


@pytest.mark.parametrize("source", TRAILING.values(), ids=TRAILING)
@pytest.mark.parametrize("kind", [*BY_BYTES, *OTHERS])
def test_tokens_of_the_prompt_are_those_that_it_has_in_use(kind: str, source: str) -> None:
    tokenizer = PreTrainedTokenizerFast(tokenizer_object={**BY_BYTES, **OTHERS}[kind](), eos_token=STOP)
    template = ChatTemplate(tokenizer, "model", source)
    for answer in ("the cat sat", "indeed", "12 times", "日本語"):
        turns = (Message("user", "the mat"), Message("assistant", answer))
        prompt = tokenizer(template.render(turns[:1], (), True), add_special_tokens=False).input_ids
        encoded = encode(template, "assistant", *turns)
        is_same = encoded.input_ids[: len(prompt)].tolist() == prompt and not encoded.supervised[: len(prompt)].any()
        assert is_same or encoded.remarks.cut_token
        if kind in BY_BYTES and kind != "bytes are missing":
            assert is_same
            assert encoded.supervised[len(prompt) :].all()
            assert tokenizer.decode(encoded.input_ids) == template.render_spans(turns).text
