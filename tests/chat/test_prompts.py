"""Training matches generation: a supervised answer follows its generation prompt, in characters and in tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from lamina.chat.message import Message, ToolCall
from lamina.chat.notes import notes_on
from lamina.chat.saved import saved_source
from lamina.chat.spans import Rendered
from lamina.chat.template import ChatTemplate, Thinking, build_template, template_of
from lamina.config import DataConfig
from lamina.data.encode import encode_examples
from lamina.data.example import EncodedExample, Example
from lamina.errors import ConfigError, DataError
from tests.support.chat_families import (
    BUILTINS,
    FIXTURES,
    TOOL,
    family_tokenizer,
    fast,
    reasoning,
    tool_conversations,
    words,
)
from tests.support.models_zoo import CHATML, build_tokenizer
from tests.support.reasoning_families import FAMILIES, reasoning_tokenizer

QUESTION, ANSWER = Message("user", "six times seven?"), Message("assistant", "42")
THOUGHT = replace(ANSWER, thinking="six times seven")
INLINE = Message("assistant", "<think>\nsix times seven\n</think>\n\n42")
MODES: tuple[Thinking, ...] = ("keep", "strip", "unsupervised")

TOKENIZERS = {
    **{f"model-{name}": (family_tokenizer, (name, True), None) for name in FIXTURES},
    **{f"built-in-{name}": (family_tokenizer, (name, False), name) for name in BUILTINS},
    **{f"reasoning-{name}": (reasoning_tokenizer, (name,), None) for name in FAMILIES if name not in FIXTURES},
}


def template_named(key: str, thinking: Thinking = "keep", enable_thinking: bool | None = None) -> ChatTemplate:
    make, arguments, wanted = TOKENIZERS[key]
    tokenizer: PreTrainedTokenizerFast = make(*arguments)
    return build_template(tokenizer, wanted, thinking, enable_thinking=enable_thinking)


def reasoning_template(name: str, thinking: Thinking = "keep", enable_thinking: bool | None = None) -> ChatTemplate:
    return build_template(reasoning_tokenizer(name), None, thinking, enable_thinking=enable_thinking)


def learned(template: ChatTemplate, messages: Sequence[Message], **more: object) -> list[str]:
    """Returns the text of each unbroken run of supervised tokens."""
    encoded = encode(template, messages, **more)
    pairs = zip(encoded.supervised.tolist(), encoded.input_ids.tolist(), strict=True)
    runs = [[token for _, token in run] for is_learned, run in groupby(pairs, lambda pair: pair[0]) if is_learned]
    return [template.tokenizer.decode(run, clean_up_tokenization_spaces=False) for run in runs]


def encode(
    template: ChatTemplate, messages: Sequence[Message], tools: Sequence[dict] = (), **more: object
) -> EncodedExample:
    example = Example(tuple(messages), 1, tools=tuple(tools), **more)  # type: ignore[arg-type]
    (encoded,) = encode_examples([example], template, "assistant")
    return encoded


def answers_of(rendered: Rendered) -> list[str]:
    return [rendered.text[span.start : span.end] for span in rendered.answers]


def check_what_is_asked(template: ChatTemplate, messages: Sequence[Message], tools: Sequence[dict] = ()) -> None:
    """Checks that every supervised answer follows its generation prompt, and that the last one is supervised."""
    rendered = template.render_spans(messages, tools)
    places = [number for number, message in enumerate(messages) if message.role == "assistant"]
    assert len(places) - 1 not in rendered.not_asked
    for number, (place, span) in enumerate(zip(places, rendered.answers, strict=True)):
        if number not in rendered.not_asked:
            assert rendered.text[: span.start] == template.render(messages[:place], tools, add_generation_prompt=True)
    question = template.question(messages, tools)
    prompt = template.render(messages[:-1], tools, add_generation_prompt=True)
    given_reasoning = question.prompt.removeprefix(prompt)
    assert question.prompt == prompt or (template.thinking == "unsupervised" and given_reasoning != question.prompt)
    ids = template.tokenizer(question.prompt, add_special_tokens=False).input_ids
    encoded = encode(template, messages, tools)
    assert encoded.input_ids[: len(ids)].tolist() == ids
    last = template.tokenizer(prompt, add_special_tokens=False).input_ids
    assert not encoded.supervised[len(last) : len(ids)].any()
    assert encoded.supervised[len(ids) :].any()
    assert question.prompt + question.written == rendered.text[: rendered.answers[-1].end]


@st.composite
def reasoned_conversations(draw: st.DrawFn) -> tuple[Message, ...]:
    """Questions and answers: with separate reasoning, with reasoning in the answer, and without."""
    messages: list[Message] = []
    for _ in range(draw(st.integers(1, 3))):
        thought, answer = draw(reasoning), draw(words).strip()
        inline = f"<think>\n{thought}\n</think>\n\n{answer}"
        asked = Message("user", draw(words) + draw(st.sampled_from(["", " /no_think", " /think"])))
        said = (
            Message("assistant", inline)
            if thought and draw(st.booleans())
            else Message("assistant", answer, (), thought)
        )
        messages += [asked, said]
    return tuple(messages)


@pytest.mark.parametrize("thinking", MODES)
@pytest.mark.parametrize("key", TOKENIZERS)
@fast
@given(messages=reasoned_conversations(), enable_thinking=st.sampled_from([None, True, False]))
def test_before_a_learned_answer_stands_its_prompt_of_use(
    key: str, thinking: Thinking, messages: tuple[Message, ...], enable_thinking: bool | None
) -> None:
    template = template_named(key, thinking, enable_thinking)
    try:
        template.render_spans(messages)
    except DataError as error:  # a template may not support reasoning, and then says so
        assert thinking != "strip"
        assert "data.thinking" in str(error)
        messages = tuple(replace(m, thinking="") if m.role == "assistant" else m for m in messages)
        template = template_named(key, "strip", enable_thinking)
    check_what_is_asked(template, messages)


@pytest.mark.parametrize("thinking", MODES)
@pytest.mark.parametrize("key", [key for key in TOKENIZERS if key.startswith("reasoning-") or key == "model-qwen3"])
@fast
@given(messages=tool_conversations(thinking=False))
def test_before_a_learned_call_stands_its_prompt_of_use(
    key: str, thinking: Thinking, messages: tuple[Message, ...]
) -> None:
    check_what_is_asked(template_named(key, thinking), messages, [TOOL])


@pytest.mark.parametrize("thinking", MODES)
@pytest.mark.parametrize("name", FAMILIES)
def test_what_the_prompt_leaves_to_the_model_is_learned(name: str, thinking: Thinking) -> None:
    family, template = FAMILIES[name], reasoning_template(name, thinking)
    assert learned(template, [QUESTION, ANSWER]) == [f"{family.opening}42{family.eos}"]
    assert template.render_spans([QUESTION, ANSWER]).opening == family.opening
    assert encode(template, [QUESTION, ANSWER]).remarks.opening == family.opening * bool(family.opening.strip())


@pytest.mark.parametrize("answer", [THOUGHT, INLINE], ids=["field", "content"])
@pytest.mark.parametrize("name", [name for name in FAMILIES if name not in ("deepseek-v3.1", "gpt-oss", "glm4.5")])
def test_reasoning_is_learned_where_the_prompt_lets_it_begin(name: str, answer: Message) -> None:
    family = FAMILIES[name]
    assert learned(reasoning_template(name), [QUESTION, answer]) == [family.reasoned + family.eos]
    assert learned(reasoning_template(name, "strip"), [QUESTION, answer]) == [f"{family.opening}42{family.eos}"]
    shown = reasoning_template(name, "unsupervised")
    assert shown.render_spans([QUESTION, answer]).text == reasoning_template(name).render_spans([QUESTION, answer]).text
    assert learned(shown, [QUESTION, answer]) == [f"42{family.eos}"]


def test_reasoning_of_a_channel_or_a_tag_without_white_space_is_learned() -> None:
    for name in ("gpt-oss", "glm4.5"):
        family = FAMILIES[name]
        assert learned(reasoning_template(name), [QUESTION, THOUGHT]) == [family.reasoned + family.eos]
    # The model must write the header of the answer, also after reasoning that is not in the loss.
    (said,) = learned(reasoning_template("gpt-oss", "unsupervised"), [QUESTION, THOUGHT])
    assert said == "<|end|><|start|>assistant<|channel|>final<|message|>42<|return|>"


SWITCHED = [name for name, family in FAMILIES.items() if family.closed is not None]


@pytest.mark.parametrize("name", SWITCHED)
def test_enable_thinking_is_told_to_the_template_in_training_and_in_use(name: str) -> None:
    family, off = FAMILIES[name], reasoning_template(name, "strip", enable_thinking=False)
    on = reasoning_template(name, enable_thinking=True)
    assert off.switch == on.switch == ("thinking" if name in ("deepseek-v3.1", "granite3.3") else "enable_thinking")
    assert off.render([QUESTION], (), True) != on.render([QUESTION], (), True)
    for answer in (ANSWER, THOUGHT):
        assert learned(off, [QUESTION, answer]) == [f"{family.closed}42{family.eos}"]
        check_what_is_asked(off, [QUESTION, answer])
        check_what_is_asked(on, [QUESTION, answer])


@pytest.mark.parametrize("name", ["qwen3", "glm4.5", "hunyuan"])
def test_reasoning_that_the_prompt_rules_out_is_refused_with_a_fix_that_works(name: str) -> None:
    with pytest.raises(DataError, match="which does not start any") as caught:
        reasoning_template(name, enable_thinking=False).render_spans([QUESTION, THOUGHT])
    assert "set data.thinking: strip, or data.enable_thinking: true" in str(caught.value)
    reasoning_template(name, "strip", enable_thinking=False).render_spans([QUESTION, THOUGHT])
    reasoning_template(name, enable_thinking=True).render_spans([QUESTION, THOUGHT])
    with pytest.raises(DataError, match="the row's chat_template_kwargs: enable_thinking: true"):
        reasoning_template(name).render_spans([QUESTION, THOUGHT], (), {"enable_thinking": False})


def test_a_prompt_that_looks_at_what_is_said_is_looked_at_in_every_row() -> None:
    template = reasoning_template("nemotron")
    for asked, opening in (("no?", "\n</think>\n\n"), ("no? /no_think", ""), ("no?", "\n</think>\n\n")):
        turns = [Message("user", asked), ANSWER]
        assert learned(template, turns) == [f"{opening}42<SPECIAL_12>"]
        check_what_is_asked(template, turns)
    with pytest.raises(DataError, match="which does not start any"):
        template.render_spans([Message("user", "no? /no_think"), THOUGHT])


LATER = (QUESTION, THOUGHT, Message("user", "and eight?"), replace(ANSWER, content="48", thinking="add six"))


@pytest.mark.parametrize("name", FAMILIES)
def test_an_earlier_answer_is_learned_only_as_it_is_asked_for(name: str) -> None:
    """The history shows it without its reasoning, or after a text other than the generation prompt."""
    family, template = FAMILIES[name], reasoning_template(name, "keep", enable_thinking=None)
    if name == "deepseek-v3.1":
        pytest.skip("does not reason unless it is told to")
    rendered = template.render_spans(LATER)
    keeps = name in ("granite3.3", "smollm3", "hunyuan")  # reasoning stays in the text of an answer
    assert rendered.not_asked == (() if keeps else (0,))
    encoded = encode(template, LATER)
    assert encoded.remarks.not_asked == (() if keeps else (1,))
    assert len(learned(template, LATER)) == (2 if keeps else 1)
    stripped = reasoning_template(name, "strip").render_spans(LATER)
    opens = name in (
        "qwen3-thinking",
        "qwq",
        "r1",
        "nemotron",
    )  # the generation prompt does; the history has no such section
    assert stripped.not_asked == ((0,) if opens else ())
    assert family.opening in stripped.text


def test_an_answer_in_a_channel_is_found_among_earlier_ones() -> None:
    template = reasoning_template("gpt-oss", "strip")
    assert answers_of(template.render_spans(LATER)) == [
        "<|channel|>final<|message|>42",
        "<|channel|>final<|message|>48<|return|>",
    ]


def test_calls_that_end_with_what_opens_the_result_have_their_place() -> None:
    template = reasoning_template("glm4.5")
    called = Message("assistant", "", (ToolCall("get_weather", {"city": "Zürich"}),))
    turns = [QUESTION, called, Message("tool", "clear", name="get_weather"), Message("assistant", "It is clear.")]
    call = "<tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_value>Zürich</arg_value>\n</tool_call><|observation|>"
    expected = [f"\n<think></think>\n{call}", "\n<think></think>\nIt is clear.<|endoftext|>"]
    assert answers_of(template.render_spans(turns, [TOOL])) == expected
    assert answers_of(template.render_spans(turns[:2], [TOOL])) == expected[:1]
    assert notes_on(template, tools=True, thinking=False) == []
    assert template.stop_token_ids == template.tokenizer.convert_tokens_to_ids(["<|endoftext|>", "<|observation|>"])


def test_a_template_that_keeps_the_opened_section_gets_no_second_one() -> None:
    source = CHATML.replace("assistant\n{% endif %}", "assistant\n<think>\n{% endif %}")
    template = build_template(build_tokenizer(source))
    assert learned(template, [QUESTION, INLINE]) == ["six times seven\n</think>\n\n42<|im_end|>"]
    assert learned(template, [QUESTION, ANSWER]) == ["\n</think>\n\n42<|im_end|>"]


def test_marked_parts_move_behind_the_prompt() -> None:
    marked = replace(
        INLINE, content=INLINE.content + ", surely", marked=((len(INLINE.content), len(INLINE.content) + 8),)
    )
    for name in ("qwq", "qwen3-thinking", "qwen3"):
        for thinking in MODES:
            rendered = reasoning_template(name, thinking).render_spans([QUESTION, marked])
            assert [rendered.text[s.start : s.end] for s in rendered.marked] == [", surely<|im_end|>"]


def test_a_run_with_enable_thinking_that_no_template_reads_is_refused() -> None:
    data = DataConfig(train="rows.jsonl", enable_thinking=False)
    with pytest.raises(ConfigError, match="reads neither enable_thinking nor thinking") as caught:
        template_of(build_tokenizer(), data)
    assert caught.value.problems[0].field == "data.enable_thinking"
    template = template_of(reasoning_tokenizer("qwen3"), data)
    assert (template.enable_thinking, template.with_enable_thinking(None).enable_thinking) == (False, None)


KWARGS = {"enable_thinking": False}


def test_chat_template_kwargs_of_a_row_are_the_templates() -> None:
    template = reasoning_template("qwen3")
    off = template.with_enable_thinking(enable_thinking=False)
    assert template.render([QUESTION], (), True, KWARGS) == off.render([QUESTION], (), True)
    assert learned(template, [QUESTION, ANSWER], template_kwargs=KWARGS) == ["42<|im_end|>"]
    assert learned(off, [QUESTION, ANSWER], template_kwargs={"enable_thinking": True}) == learned(
        template, [QUESTION, ANSWER]
    )
    question = template.question((QUESTION, ANSWER), kwargs=KWARGS)
    assert question.prompt == off.render([QUESTION], (), True)
    assert (question.written, question.answer) == ("42<|im_end|>", "42")


def test_chat_template_kwargs_that_are_not_read_or_forge_a_turn_are_named() -> None:
    template = reasoning_template("qwen3")
    encoded = encode(template, [QUESTION, ANSWER], template_kwargs={"enable_thinking": False, "thinkign": True})
    assert encoded.remarks.unread_kwargs == ("thinkign",)
    with pytest.raises(DataError, match=r"chat_template_kwargs contain '<\|im_end\|>', a special token"):
        template.render([QUESTION], (), True, {"custom": ["x<|im_end|>"]})


@pytest.mark.parametrize("name", SWITCHED)
@pytest.mark.parametrize("value", [True, False])
def test_a_saved_template_tells_itself_what_it_was_told(name: str, value: bool) -> None:
    told = reasoning_template(name, "strip", enable_thinking=value)
    assert isinstance(saved_source(told), str)
    saved = ChatTemplate(told.tokenizer, "model", saved_source(told), thinking="strip")
    for turns in ([QUESTION], [QUESTION, ANSWER, QUESTION]):
        assert saved.render(turns, (), True) == told.render(turns, (), True)
        tokenizer = told.tokenizer
        by_transformers = tokenizer.apply_chat_template(
            [{"role": turn.role, "content": turn.content} for turn in turns],
            chat_template=saved_source(told),
            tokenize=False,
            add_generation_prompt=True,
        )
        assert by_transformers == told.render(turns, (), True)
    other = {told.switch: not value}
    assert saved.render([QUESTION], (), True, other) == told.with_enable_thinking(not value).render(
        [QUESTION], (), True
    )


def test_a_template_that_was_told_nothing_is_saved_as_it_is() -> None:
    assert saved_source(reasoning_template("qwen3")) is None
    assert (
        saved_source(build_template(build_tokenizer(None), "chatml"))
        == build_template(build_tokenizer(), "chatml").source
    )
    tokenizer = build_tokenizer()
    source = reasoning_tokenizer("qwen3").chat_template
    tokenizer.chat_template = {"default": source, "tool_use": source}  # type: ignore[assignment]
    saved = saved_source(build_template(tokenizer, enable_thinking=False))
    assert isinstance(saved, dict) and set(saved) == {"default", "tool_use"}
    tokenizer.chat_template = saved  # type: ignore[assignment]
    for tools in ((), (TOOL,)):
        prompt = build_template(tokenizer).render([QUESTION], tools, True)
        assert prompt.endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")
