"""Bare text: tokens and loss of TRL's prompt-completion format, one BOS and one EOS, and one prompt in generation."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import PreTrainedTokenizerBase

from lamina.chat.bare import BARE
from lamina.chat.message import Message, ToolCall
from lamina.chat.saved import saved_source
from lamina.chat.template import ChatTemplate, build_template, template_of
from lamina.config import DataConfig
from lamina.data.encode import encode_examples
from lamina.data.example import Example, Kind
from lamina.errors import DataError
from tests.support.models_zoo import build_tokenizer

PAIRS = [
    ("What is 2 + 2?", " 4"),
    ("What is 2 + 2? ", "4"),
    ("### Human: naïve café 日本\n### Assistant:", " 🎉  \n"),
    ("<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n", "ho"),
    ("a <think>", "b</think> c"),
    ("", "starts with nothing"),
]


def with_bos(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    from tokenizers.processors import TemplateProcessing

    bos = str(tokenizer.bos_token)
    backend: Any = tokenizer.backend_tokenizer
    backend.post_processor = TemplateProcessing(single=f"{bos} $A", special_tokens=[(bos, tokenizer.bos_token_id)])
    return tokenizer


@pytest.fixture(params=["without BOS", "with BOS"])
def bare(request: pytest.FixtureRequest) -> ChatTemplate:
    tokenizer = build_tokenizer()
    return build_template(with_bos(tokenizer) if request.param == "with BOS" else tokenizer, BARE)


def encode(template: ChatTemplate, prompt: str, completion: str) -> tuple[list[int], list[bool]]:
    turns = (Message("user", prompt), Message("assistant", completion))
    (encoded,) = encode_examples([Example(turns, 1)], template, "assistant")
    return encoded.input_ids.tolist(), encoded.supervised.tolist()


@pytest.mark.parametrize(("prompt", "completion"), PAIRS)
def test_tokens_and_loss_are_those_of_trl(bare: ChatTemplate, prompt: str, completion: str) -> None:
    """TRL: the prompt's ids, those of prompt and completion with EOS, and a mask by the length of the first."""
    tokenizer = bare.tokenizer
    prompt_ids = tokenizer(text=prompt).input_ids
    both = tokenizer(text=prompt + completion + str(tokenizer.eos_token)).input_ids
    ids, supervised = encode(bare, prompt, completion)
    assert ids == both
    start = max(1, len(prompt_ids))  # nothing precedes the first token
    assert supervised == [False] * start + [True] * (len(both) - start)


@pytest.mark.parametrize(("prompt", "completion"), PAIRS)
def test_generation_gets_the_prompt_of_training(bare: ChatTemplate, prompt: str, completion: str) -> None:
    ids, supervised = encode(bare, prompt, completion)
    text = bare.render([Message("user", prompt)], add_generation_prompt=True)
    asked = bare.tokenizer(text, add_special_tokens=False).input_ids
    assert ids[: max(1, len(asked))] == (asked or ids[:1])
    assert not any(supervised[: len(asked)])
    question = bare.question([Message("user", prompt), Message("assistant", completion)])
    assert (question.prompt, question.written) == (text, f"{completion}{bare.tokenizer.eos_token}")


def test_bos_and_eos_are_never_doubled(bare: ChatTemplate) -> None:
    bos, eos = str(bare.tokenizer.bos_token), str(bare.tokenizer.eos_token)
    plain = encode(bare, "a", "b")
    assert encode(bare, "a", f"b{eos}") == plain
    assert encode(bare, "a", f"b{eos}{eos}\n") == plain
    if bare.adds_bos:
        assert encode(bare, f"{bos}{bos}a", "b") == plain


@pytest.mark.parametrize(
    "messages",
    [
        [Message("system", "s"), Message("user", "a")],
        [Message("user", "a"), Message("assistant", "b"), Message("user", "c")],
        [Message("user", "a"), Message("assistant", "", (ToolCall("f", {}),))],
        [Message("assistant", "a")],
    ],
)
def test_conversations_are_refused_with_a_fix(bare: ChatTemplate, messages: list[Message]) -> None:
    with pytest.raises(DataError, match="Fix: use the chat template"):
        bare.render(messages)


def test_transformers_renders_the_same(bare: ChatTemplate) -> None:
    tokenizer, turns = bare.tokenizer, [{"role": "user", "content": " a\n"}, {"role": "assistant", "content": "b "}]
    messages = [Message(turn["role"], turn["content"]) for turn in turns]
    rendered = tokenizer.apply_chat_template(turns, chat_template=bare.source, tokenize=False)
    assert rendered == bare.render(messages)


def test_a_merged_model_keeps_its_own_template_for_conversations() -> None:
    tokenizer = build_tokenizer()
    saved = saved_source(build_template(tokenizer, BARE))
    assert isinstance(saved, dict)
    merged = build_tokenizer()
    merged.chat_template = saved  # pyright: ignore[reportAttributeAccessIssue]
    assert build_template(merged).is_bare
    chat = template_of(merged, DataConfig(train="x"))
    assert not chat.is_bare
    assert chat.source == tokenizer.chat_template
    alone = build_tokenizer()
    alone.chat_template = build_template(alone, BARE).source
    assert template_of(alone, DataConfig(train="x")).name == "plain"


@pytest.mark.parametrize(
    "text", ["a document", " naïve 日本\n", "ends in EOS<|im_end|>", "<|endoftext|>begins with BOS"]
)
def test_plain_text_has_the_tokens_of_trl(bare: ChatTemplate, text: str) -> None:
    """TRL: EOS is added unless it is there, and the tokenizer adds BOS; lamina also adds no second BOS."""
    tokenizer, eos, bos = bare.tokenizer, str(bare.tokenizer.eos_token), str(bare.tokenizer.bos_token)
    given = text.removeprefix(bos) if bare.adds_bos else text
    expected = tokenizer(text=given if given.endswith(eos) else given + eos).input_ids
    (encoded,) = encode_examples([Example((), 1, Kind.TEXT, text=text)], bare, "assistant")
    assert encoded.input_ids.tolist() == expected
    assert encoded.supervised.tolist() == [False] + [True] * (len(expected) - 1)
