"""For random conversations and every template: exactly the assistant's text and its stop token are supervised."""

from __future__ import annotations

from dataclasses import replace
from itertools import groupby, pairwise

import pytest
from hypothesis import given
from transformers import PreTrainedTokenizerFast

from lamina.chat.jinja import JinjaTemplate
from lamina.chat.message import Message
from lamina.chat.scaffold import Scaffolds
from lamina.chat.template import ChatTemplate, build_template
from lamina.data.encode import encode_examples
from lamina.data.example import EncodedExample, Example
from tests.support.chat_families import (
    BUILTINS,
    FIXTURES,
    TOOL,
    conversations,
    family_tokenizer,
    fast,
    tool_conversations,
)

EVERY = [*(("model", name) for name in FIXTURES), *(("built-in", name) for name in BUILTINS)]
every_template = pytest.mark.parametrize(("kind", "name"), EVERY, ids=[f"{kind}-{name}" for kind, name in EVERY])
_BUILT: dict[tuple[str, str], ChatTemplate] = {}


def template_of(kind: str, name: str) -> ChatTemplate:
    if (kind, name) not in _BUILT:
        tokenizer = family_tokenizer(name, kind == "model")
        _BUILT[kind, name] = build_template(tokenizer, None if kind == "model" else name)
    return _BUILT[kind, name]


def supervised_runs(example: EncodedExample, tokenizer: PreTrainedTokenizerFast) -> list[str]:
    """Returns the text of each unbroken run of supervised tokens."""
    pairs = zip(example.supervised.tolist(), example.input_ids.tolist(), strict=True)
    runs = [[token for _, token in run] for supervised, run in groupby(pairs, lambda pair: pair[0]) if supervised]
    return [tokenizer.decode(run, skip_special_tokens=False, clean_up_tokenization_spaces=False) for run in runs]


@every_template
@fast
@given(messages=conversations())
def test_supervised_tokens_are_the_answers_with_their_stop_tokens(
    kind: str, name: str, messages: tuple[Message, ...]
) -> None:
    family = (FIXTURES if kind == "model" else BUILTINS)[name]
    template = template_of(kind, name)
    tokenizer = template.tokenizer
    assert isinstance(tokenizer, PreTrainedTokenizerFast)
    assert template.stop_token == family.stop
    if not family.system and messages[0].role == "system":
        messages = messages[1:]
    answers = [message.content for message in messages if message.role == "assistant"]
    rendered = template.render_spans(messages)
    assert [rendered.text[s.start : s.end] for s in rendered.answers] == family.all_taught(answers)
    (encoded,) = encode_examples([Example(messages, 1)], template, "assistant")
    assert supervised_runs(encoded, tokenizer) == family.all_taught(answers)
    assert encoded.input_ids[encoded.supervised][-1] == template.stop_token_id
    assert tokenizer.decode(encoded.input_ids, clean_up_tokenization_spaces=False) == rendered.text


@every_template
@fast
@given(messages=conversations())
def test_words_around_the_turns_and_marks_tell_the_same(kind: str, name: str, messages: tuple[Message, ...]) -> None:
    family = (FIXTURES if kind == "model" else BUILTINS)[name]
    template = template_of(kind, name)
    if not family.system and messages[0].role == "system":
        messages = messages[1:]
    rendered = template.render_spans(messages)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Scaffolds, "find", lambda *_: None)
        assert template.render_spans(messages) == rendered


@every_template
def test_a_second_chat_of_the_same_roles_needs_a_rendering_and_its_prompt(
    kind: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    template = template_of(kind, name)
    chats = [[Message("user", f"ask {n}"), Message("assistant", f"said {n}")] for n in range(3)]
    template.render_spans(chats[0])
    renderings = []
    original = JinjaTemplate.render
    monkeypatch.setattr(JinjaTemplate, "render", lambda *args: renderings.append(1) or original(*args))
    template.render_spans(chats[1])
    assert len(renderings) == 2
    # White space that a template strips or keeps: the marks show where the answer is.
    spaced = template.render_spans([chats[2][0], Message("assistant", "  said  ")])
    assert "said" in spaced.text[spaced.answers[0].start : spaced.answers[0].end]


@every_template
@fast
@given(messages=conversations())
def test_no_special_token_comes_twice_and_bos_only_where_it_opens_turns(
    kind: str, name: str, messages: tuple[Message, ...]
) -> None:
    family = (FIXTURES if kind == "model" else BUILTINS)[name]
    template = template_of(kind, name)
    if not family.system and messages[0].role == "system":
        messages = messages[1:]
    (encoded,) = encode_examples([Example(messages, 1)], template, "assistant")
    ids = encoded.input_ids.tolist()
    special = set(template.tokenizer.convert_tokens_to_ids([*family.special, "<|im_start|>", "<|im_end|>"]))
    assert not [pair for pair in pairwise(ids) if pair[0] == pair[1] and pair[0] in special]
    # Granite's BOS is its stop token, SmolLM2's opens every turn, and Llama 2 writes it before every question.
    if family.bos and name not in ("granite3", "smollm2", "llama2"):
        assert ids.count(template.tokenizer.bos_token_id) <= 1
        assert template.tokenizer.bos_token_id not in ids[1:]


@every_template
@fast
@given(messages=conversations())
def test_render_then_parse_is_stable(kind: str, name: str, messages: tuple[Message, ...]) -> None:
    family = (FIXTURES if kind == "model" else BUILTINS)[name]
    template = template_of(kind, name)
    if not family.system and messages[0].role == "system":
        messages = messages[1:]
    rendered = template.render_spans(messages)
    taught = [rendered.text[s.start : s.end].removesuffix(family.gap + family.stop) for s in rendered.answers]
    spoken = [whole.removeprefix(family.opening) for whole in taught[:-1]]
    spoken.append(taught[-1].removeprefix(family.last_opening or family.opening))
    again = iter(spoken)
    parsed = [Message(m.role, next(again)) if m.role == "assistant" else m for m in messages]
    assert template.render_spans(parsed) == rendered


@every_template
@fast
@given(messages=conversations())
def test_generation_prompt_is_what_training_saw(kind: str, name: str, messages: tuple[Message, ...]) -> None:
    family = (FIXTURES if kind == "model" else BUILTINS)[name]
    if not family.system and messages[0].role == "system":
        messages = messages[1:]
    template = template_of(kind, name)
    rendered = template.render_spans(messages)
    answers = [number for number, message in enumerate(messages) if message.role == "assistant"]
    for number, span in zip(answers, rendered.answers, strict=True):
        assert rendered.text[: span.start] == template.render(messages[:number], add_generation_prompt=True)
    assert rendered.not_asked == ()
    # Some templates write a space (Llama 2, Mistral) or an empty reasoning section (Qwen 3) before the answer.
    assert rendered.opening == (family.last_opening or family.opening)


@every_template
@fast
@given(messages=tool_conversations(thinking=True))
def test_calls_and_reasoning_are_taught_as_the_model_would_write_them(
    kind: str, name: str, messages: tuple[Message, ...]
) -> None:
    template = template_of(kind, name)
    family = (FIXTURES if kind == "model" else BUILTINS)[name]
    messages = tuple(
        replace(m, thinking="") if family.drops_thinking or (m.tool_calls and family.drops_beside_calls) else m
        for m in messages
    )
    assert (template.support.tools, template.support.thinking) == (family.tools, family.thinking)
    rendered = template.render_spans(messages, [TOOL])
    spoken = [message for message in messages if message.role == "assistant"]
    said = [rendered.text[span.start : span.end] for span in rendered.answers]
    assert len(said) == len(spoken)
    for text, message in zip(said, spoken, strict=True):
        assert text.endswith(family.stop)
        assert text.count(family.stop) == 1
        assert message.content.strip() in text
        assert all(f'"{call.name}"' in text or f"sep｜>{call.name}\n" in text for call in message.tool_calls)
        assert "Question:" not in text
        assert "Result:" not in text
    assert spoken[-1].thinking.strip() in said[-1]
    prompt = template.render(messages[:-1], [TOOL], add_generation_prompt=True)
    assert rendered.text.startswith(prompt)
    assert len(prompt) <= rendered.answers[-1].start
