"""Tools, calls, reasoning and marked parts, in templates that support them and in templates that do not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from lamina.chat.message import Message, ToolCall
from lamina.chat.notes import notes_on
from lamina.chat.template import ChatTemplate, Rendered, Span, Thinking, build_template
from lamina.errors import DataError
from tests.support.chat_families import FIXTURES, TOOL, family_tokenizer, fixture_source
from tests.support.models_zoo import CHATML, build_tokenizer

CALL = ToolCall("get_weather", {"city": "Zürich"})
QUESTION = Message("user", "the weather?")
RESULT = Message("tool", "clear", name="get_weather")
ANSWER = Message("assistant", "It is clear.")
TOOL_TURNS = (QUESTION, Message("assistant", "", (CALL,)), RESULT, ANSWER)


def template_of(name: str, thinking: Thinking = "keep") -> ChatTemplate:
    return build_template(family_tokenizer(name, True), None, thinking)


def cut(rendered: Rendered, spans: Sequence[Span]) -> list[str]:
    return [rendered.text[span.start : span.end] for span in spans]


def answers_of(rendered: Rendered) -> list[str]:
    return cut(rendered, rendered.answers)


NATIVE = {
    "llama3.1": '{"name": "get_weather", "parameters": {"city": "Zürich"}}<|eot_id|>',
    "qwen2.5": '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Zürich"}}\n</tool_call><|im_end|>',
    "qwen3": '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Zürich"}}\n</tool_call><|im_end|>',
    "deepseek-v3": "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>get_weather\n```json\n"
    '{"city": "Zürich"}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜><｜end▁of▁sentence｜>',
    "granite3": '<|tool_call|>[{"name": "get_weather", "arguments": {"city": "Zürich"}}]<|end_of_text|>',
}


@pytest.mark.parametrize("name", NATIVE)
def test_calls_are_taught_in_the_models_own_format(name: str) -> None:
    template = template_of(name)
    rendered = template.render_spans(TOOL_TURNS, [TOOL])
    assert answers_of(rendered) == [NATIVE[name], FIXTURES[name].taught("It is clear.", is_last=True)]
    assert notes_on(template, tools=True, thinking=False) == []


def test_calls_get_ids_that_mistral_takes() -> None:
    turns = [*TOOL_TURNS, QUESTION, *TOOL_TURNS[1:]]
    named = [
        replace(m, tool_calls=(replace(CALL, id="call_1"),))
        if m.tool_calls
        else replace(m, tool_call_id="call_1" * (m is RESULT))
        for m in TOOL_TURNS
    ]
    for conversation in (turns, named):
        rendered = template_of("mistral-v0.3").render_spans(conversation, [TOOL])
        calls = [answer for answer in answers_of(rendered) if "get_weather" in answer]
        assert len(calls) == len(conversation) // 4
        for call in calls:
            assert call.startswith('[TOOL_CALLS] [{"name": "get_weather", "arguments": {"city": "Zürich"}, "id": "')
            number = call[-len('123456789"}]</s>') :][:9]
            assert call.endswith(f'{number}"}}]</s>')
            assert f'"content": "clear", "call_id": "{number}"' in rendered.text


HERMES_CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Zürich"}}\n</tool_call>'


@pytest.mark.parametrize("name", [name for name, family in FIXTURES.items() if not family.tools])
def test_template_without_tools_gets_them_as_text(name: str) -> None:
    template = template_of(name)
    rendered = template.render_spans(TOOL_TURNS, [TOOL])
    family = FIXTURES[name]
    assert answers_of(rendered) == [family.taught(HERMES_CALL), family.taught("It is clear.")]
    assert rendered.text.count("<tools>\n") == 1
    assert '"description": "Today\'s weather."' in rendered.text
    assert "<tool_response>\nclear\n</tool_response>" in rendered.text
    assert any("Hermes" in note for note in notes_on(template, tools=True, thinking=False))
    assert notes_on(template, tools=False, thinking=False) == []


def test_tools_as_text_join_the_system_turn_the_words_and_one_another() -> None:
    turns = (
        Message("system", "Be kind."),
        QUESTION,
        Message("assistant", "Let me see.", (CALL, CALL)),
        RESULT,
        RESULT,
        ANSWER,
    )
    template = ChatTemplate(build_tokenizer(), "model", CHATML)
    rendered = template.render_spans(turns, [TOOL["function"]])
    assert rendered.text.startswith("<|im_start|>system\nBe kind.\n\nYou may call")
    assert answers_of(rendered)[0] == f"Let me see.\n{HERMES_CALL}\n{HERMES_CALL}<|im_end|>"
    both = "<tool_response>\nclear\n</tool_response>\n<tool_response>\nclear\n</tool_response>"
    assert f"<|im_start|>user\n{both}<|im_end|>" in rendered.text
    assert '{"type": "function", "function": {"name": "get_weather"' in rendered.text


def test_words_beside_calls_that_the_template_drops_are_refused() -> None:
    turns = (QUESTION, Message("assistant", "Let me see.", (CALL,)), RESULT, ANSWER)
    with pytest.raises(DataError, match="drops the text of an assistant turn with tool calls"):
        template_of("llama3.1").render_spans(turns, [TOOL])
    assert answers_of(template_of("qwen2.5").render_spans(turns, [TOOL]))[0].startswith("Let me see.\n<tool_call>")


def test_several_calls_that_the_template_refuses_are_a_data_error() -> None:
    with pytest.raises(DataError, match="one call at a time"):
        template_of("llama3.1").render_spans((QUESTION, Message("assistant", "", (CALL, CALL)), RESULT, ANSWER), [TOOL])


@pytest.mark.parametrize("tool", [{"type": "function"}, {"function": "f"}, {"function": {}}])
def test_tool_without_a_name_is_refused(tool: dict) -> None:
    with pytest.raises(DataError, match="a tool has no name"):
        template_of("qwen2.5").render(TOOL_TURNS, [tool])


def test_template_for_tools_is_taken_for_rows_with_tools() -> None:
    tokenizer = build_tokenizer()
    tokenizer.chat_template = {"default": CHATML, "tool_use": fixture_source("qwen2.5")}  # type: ignore[assignment]
    template = build_template(tokenizer)
    turns = [QUESTION, ANSWER]
    assert template.render(turns).startswith("<|im_start|>user")
    assert "# Tools" in template.render(turns, [TOOL])
    assert "# Tools" in template.render_spans(turns, [TOOL]).text
    assert template.digest != ChatTemplate(tokenizer, "model", CHATML).digest


THOUGHT = Message("assistant", "42", thinking="six times seven")
INLINE = Message("assistant", "<think>\nsix times seven\n</think>\n\n42")


@pytest.mark.parametrize("answer", [THOUGHT, INLINE], ids=["field", "content"])
@pytest.mark.parametrize("name", ["qwen3", "smollm2"])
def test_reasoning_is_kept_stripped_or_left_out_of_the_loss(name: str, answer: Message) -> None:
    whole = "<think>\nsix times seven\n</think>\n\n42<|im_end|>"
    kept = template_of(name).render_spans([QUESTION, answer])
    assert answers_of(kept) == [whole]
    assert kept.thinking == ()
    shown = template_of(name, "unsupervised").render_spans([QUESTION, answer])
    assert shown.text == kept.text
    assert cut(shown, shown.thinking) == ["<think>\nsix times seven\n</think>\n\n"]
    stripped = template_of(name, "strip").render_spans([QUESTION, answer])
    assert answers_of(stripped) == [FIXTURES[name].taught("42", is_last=True)]
    assert "six times seven" not in stripped.text


def test_reasoning_written_as_text_is_noted() -> None:
    (note,) = notes_on(template_of("smollm2"), tools=False, thinking=True)
    assert "does not support reasoning" in note
    assert notes_on(template_of("smollm2", "strip"), tools=False, thinking=True) == []
    assert notes_on(template_of("qwen3"), tools=False, thinking=True) == []


def test_reasoning_of_earlier_turns_that_the_template_drops_is_not_taught() -> None:
    rendered = template_of("qwen3", "unsupervised").render_spans([QUESTION, THOUGHT, QUESTION, THOUGHT])
    assert answers_of(rendered) == ["42<|im_end|>", "<think>\nsix times seven\n</think>\n\n42<|im_end|>"]
    assert cut(rendered, rendered.thinking) == ["<think>\nsix times seven\n</think>\n\n"]


def test_reasoning_that_the_template_removes_is_refused() -> None:
    with pytest.raises(DataError, match=r"data\.thinking: strip"):
        template_of("deepseek-v3").render_spans([QUESTION, THOUGHT])
    assert answers_of(template_of("deepseek-v3", "strip").render_spans([QUESTION, THOUGHT]))[0].startswith("42")


def test_reasoning_before_a_call() -> None:
    turns = (QUESTION, Message("assistant", "", (CALL,), thinking="look"), RESULT, ANSWER)
    rendered = template_of("qwen3", "unsupervised").render_spans(turns, [TOOL])
    assert cut(rendered, rendered.thinking) == ["<think>\nlook\n</think>\n\n"]
    assert answers_of(rendered)[0] == "<think>\nlook\n</think>\n\n" + NATIVE["qwen3"]


MARKED = Message("assistant", "  no, yes and maybe ", marked=((6, 9), (14, 19)))


@pytest.mark.parametrize("name", [name for name in FIXTURES if name != "qwen3"])
def test_marked_parts_are_found(name: str) -> None:
    template = template_of(name)
    rendered = template.render_spans([QUESTION, MARKED, QUESTION, ANSWER])
    # A part that ends where the template ends the answer includes the stop token.
    family = FIXTURES[name]
    assert cut(rendered, rendered.marked) == ["yes", family.taught("maybe ").removeprefix(family.opening)]


def test_marked_part_at_the_end_of_an_answer_takes_its_stop_token_in() -> None:
    template = ChatTemplate(build_tokenizer(), "model", CHATML)
    answer = Message("assistant", "no, yes", marked=((4, 7),))
    asked = Message("user", "is it?", marked=((0, 2),))
    rendered = template.render_spans([asked, answer])
    assert cut(rendered, rendered.marked) == ["is", "yes<|im_end|>"]
    assert answers_of(rendered) == ["no, yes<|im_end|>"]
    bare = ChatTemplate(
        build_tokenizer(), "model", "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    )
    appended = bare.render_spans([QUESTION, answer])
    assert cut(appended, appended.marked) == ["yes<|im_end|>"]


def test_marked_ranges_move_with_the_content() -> None:
    turn = Message("assistant", "<think>so</think>\nno, yes", marked=((22, 25),))
    assert turn.content[22:25] == "yes"
    for name, thinking in (("qwen3", "keep"), ("qwen3", "strip"), ("smollm2", "keep"), ("smollm2", "strip")):
        rendered = template_of(name, thinking).render_spans([QUESTION, turn])
        assert cut(rendered, rendered.marked) == ["yes<|im_end|>"]
    written = template_of("smollm2").render_spans(
        [QUESTION, Message("assistant", "yes", thinking="so", marked=((0, 3),))]
    )
    assert cut(written, written.marked) == ["yes<|im_end|>"]


def test_every_assistant_turn_has_a_span_whether_supervised_or_not() -> None:
    turns = [QUESTION, replace(ANSWER, supervised=False), QUESTION, ANSWER]
    assert len(template_of("qwen2.5").render_spans(turns).answers) == 2
