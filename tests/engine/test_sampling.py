"""Settings of a request: what they may be, and that they act in transformers' order."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lamina import Request, Sampling
from lamina.chat.message import Message
from lamina.engine.detokenizer import Detokenizer
from lamina.engine.generator import Request as Asked
from lamina.engine.local import LocalGenerator
from lamina.errors import ConfigError, DataError
from tests.support.answers import build_template
from tests.support.models_zoo import build_model, build_tokenizer

INTEGERS = ("max_tokens", "seed", "top_k", "min_tokens", "logprobs", "prompt_logprobs")


@pytest.mark.parametrize("value", [2.5, 2.0, True, "3", 2**64, 10**30, -1])
@pytest.mark.parametrize("name", INTEGERS)
def test_what_must_be_an_integer_is_one_of_a_size_that_can_be_computed_with(name: str, value: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        Sampling(**{name: value})
    (problem,) = caught.value.problems
    assert problem.field == f"sampling.{name}"
    assert problem.message.startswith(f"{value!r} is not an integer between ") and problem.fix


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"top_k": 2**31}, "sampling.top_k"),
        ({"top_k": 9223372036854775808}, "sampling.top_k"),
        ({"temperature": 10**400}, "sampling.temperature"),
        ({"temperature": "hot"}, "sampling.temperature"),
        ({"top_p": None}, "sampling.top_p"),
        ({"min_p": "0"}, "sampling.min_p"),
        ({"repetition_penalty": float("inf")}, "sampling.repetition_penalty"),
        ({"presence_penalty": 1e39}, "sampling.presence_penalty"),
        ({"stop_token_ids": (-1,)}, "sampling.stop_token_ids"),
        ({"stop_token_ids": (2.5,)}, "sampling.stop_token_ids"),
        ({"logit_bias": {2.5: 1.0}}, "sampling.logit_bias"),
        ({"logit_bias": {2: 1e300}}, "sampling.logit_bias"),
        ({"logit_bias": {2: "a"}}, "sampling.logit_bias"),
        ({"stop": (3,)}, "sampling.stop"),
        ({"stop": ("",)}, "sampling.stop"),
        ({"stop": ""}, "sampling.stop"),
    ],
)
def test_other_values_that_nothing_can_be_computed_with_are_refused(values: dict[str, Any], field: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Sampling(**values)
    assert [problem.field for problem in caught.value.problems] == [field]


def test_one_stop_string_is_one() -> None:
    assert Sampling(stop="END") == Sampling(stop=("END",)) == Sampling(stop=["END"])  # type: ignore[arg-type]


def test_turns_may_be_plain_objects() -> None:
    turns: Any = [{"role": "system", "content": "a"}, Message("user", "b")]
    assert list(Request(messages=turns).messages or ()) == [Message("system", "a"), Message("user", "b")]
    generator = LocalGenerator(build_model("llama", vocab_size=259), build_template(build_tokenizer()))
    sampling = Sampling(max_tokens=3)
    plain, own = generator.generate(
        [
            Asked(messages=messages, sampling=sampling)
            for messages in ([{"role": "user", "content": "b"}], [Message("user", "b")])  # type: ignore[list-item]
        ]
    )
    assert plain == own


@pytest.mark.parametrize(
    ("turn", "words"),
    [
        ({"role": "user"}, "give each a role and a content"),
        ({"role": 1, "content": "a"}, "give each a role and a content"),
        ("red", "give each a role and a content"),
        ({"role": "user", "content": "a", "weight": 0}, "weight, which is not read"),
    ],
)
def test_a_turn_that_is_none_is_refused_in_words(turn: Any, words: str) -> None:
    with pytest.raises(DataError, match=words):
        Request(messages=[Message("user", "a"), turn])


@pytest.mark.parametrize("use_kernels", [True, False])
def test_bias_and_penalty_act_in_the_order_of_transformers(use_kernels: bool) -> None:
    model = build_model("llama", vocab_size=259)
    generator = LocalGenerator(model, build_template(build_tokenizer()), use_kernels=use_kernels)
    random = torch.Generator().manual_seed(3)
    differ = 0
    for number in range(6):
        ids = torch.randint(3, 259, (12,), generator=random).tolist()
        # Of tokens that are penalized, some of them from above 0 to below and back.
        bias = dict(zip(ids, [6.0, -5.0, 3.0, 8.0, -3.0, 4.0, 5.0, 7.0, -8.0, 6.5, 5.5, 4.5], strict=True))
        sampling = Sampling(max_tokens=10, ignore_stop_tokens=True, repetition_penalty=1.7, logit_bias=bias)
        (piece,) = generator.generate([Request(token_ids=ids, sampling=sampling)])
        options: dict[str, Any] = {"max_new_tokens": 10, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
        options |= {"repetition_penalty": 1.7, "sequence_bias": {(token,): value for token, value in bias.items()}}
        expected = model.generate(torch.tensor([ids]), **options)[0, len(ids) :].tolist()  # type: ignore[operator]
        assert list(piece.token_ids) == expected, number
        plain = model.generate(torch.tensor([ids]), **{**options, "repetition_penalty": 1.0})  # type: ignore[operator]
        differ += plain[0, len(ids) :].tolist() != expected
    assert differ  # the penalty matters


def test_a_stop_string_that_is_complete_within_min_tokens_ends_nothing() -> None:
    generator = LocalGenerator(build_model("llama", vocab_size=259), build_template(build_tokenizer()))

    def answer(**changes: Any) -> Any:
        sampling = Sampling(**{"max_tokens": 30, "ignore_stop_tokens": True, "logit_bias": {70: 50.0}, **changes})
        asked = Request(token_ids=[5, 6], sampling=sampling)
        (whole,) = generator.generate([asked])
        assert "".join(piece.text for piece in generator.stream(asked)) == whole.text
        return whole

    letter = answer().text[0]
    assert answer().text == letter * 30
    # As in vLLM: it is looked for in the text of the tokens that come after the first min_tokens.
    found = answer(stop=letter * 2, min_tokens=10)
    assert (len(found.token_ids), found.text, found.stopped_by) == (11, letter * 9, letter * 2)
    assert len(answer(stop=letter * 2).token_ids) == 2
    assert answer(stop=letter * 2, min_tokens=30).finish_reason == "length"


def test_stop_strings_of_other_lengths_do_not_reach_back() -> None:
    tokenizer = build_tokenizer()
    told = Detokenizer(tokenizer, ("b", "cdefgh"), 3)
    for token in tokenizer("abcdx", add_special_tokens=False).input_ids:
        told.add(token)
    assert told.stopped_by is None and told.text == "abcdx"
