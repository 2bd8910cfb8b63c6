"""Parsing a model's output: the same answer whatever the template writes around it, whole or streamed."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamina.chat.message import Message
from lamina.chat.template import Thinking, build_template
from lamina.chat.voice import Voice
from tests.support.chat_families import fast, words
from tests.support.models_zoo import build_tokenizer
from tests.support.reasoning_families import FAMILIES, reasoning_tokenizer

QUESTION = Message("user", "six times seven?")
said = words.map(str.strip).filter(lambda text: "think>" not in text)


@pytest.mark.parametrize("name", FAMILIES)
@fast
@given(answer=said, reasoning=st.just("") | said, thinking=st.sampled_from(["keep", "strip", "unsupervised"]))
def test_what_is_learned_is_read_as_the_answer(name: str, answer: str, reasoning: str, thinking: Thinking) -> None:
    if name == "deepseek-v3.1":  # does not reason by default
        reasoning = ""
    template = build_template(reasoning_tokenizer(name), None, thinking)
    question = template.question((QUESTION, Message("assistant", answer, (), reasoning)))
    kept = f"<think>\n{reasoning}\n</think>\n\n{answer}" if reasoning and thinking == "keep" else answer
    assert question.answer.strip() == kept
    assert question.voice.read(question.written).strip() == kept


VOICES = {
    "plain": Voice("", None, "", frozenset({"<|end|>"})),
    "empty section": Voice("<think>\n\n</think>\n\n", "<think>\n", "\n</think>\n\n", frozenset({"<|end|>"})),
    "opened": Voice("\n</think>\n\n", "", "\n</think>\n\n", frozenset({"<|end|>"})),
    "channel": Voice("<c>final<m>", "<c>analysis<m>", "<|end|><s>assistant<c>final<m>", frozenset({"<|end|>", "<s>"})),
    "reasoning in the text": Voice("", "<think>\n", "\n</think>\n\n", frozenset({"<|end|>"})),
}


@st.composite
def written(draw: st.DrawFn, voice: Voice) -> list[str]:
    """What a model might write: in the template's format, nearly in it, or not at all; cut anywhere but inside a
    token."""
    parts = [voice.opening, voice.before or "", voice.after, "<|end|>", "\n", "<think>", "</think>", "so", "42"]
    text = "".join(draw(st.lists(st.sampled_from(parts), max_size=7)))
    letters = re.findall(r"<\|end\|>|<s>|.", text, re.DOTALL)
    pieces = [""]
    for letter in letters:
        pieces += [""] * draw(st.integers(0, 1))
        pieces[-1] += letter
    return pieces


@pytest.mark.parametrize("name", VOICES)
@fast
@given(data=st.data())
def test_pieces_make_the_whole_and_are_never_taken_back(name: str, data: st.DataObject) -> None:
    voice = VOICES[name]
    pieces = data.draw(written(voice))
    assert "".join(voice.stream(pieces)) == voice.read("".join(pieces))


def test_reasoning_is_given_as_rows_have_it() -> None:
    expected = "<think>\nhm\n</think>\n\n42"
    for name, text in {
        "empty section": "<think>\nhm\n</think>\n\n42<|end|>",
        "opened": "hm\n</think>\n\n42<|end|>",
        "channel": "<c>analysis<m>hm<|end|><s>assistant<c>final<m>42<|end|>",
        "reasoning in the text": "<think>\nhm\n</think>\n\n42<|end|>",
    }.items():
        assert VOICES[name].read(text) == expected
        assert list(VOICES[name].stream(list(text.partition("42")))) != [expected]  # the reasoning comes first
    for name, text in {"empty section": "<think>\nhm", "opened": "hm", "channel": "<c>analysis<m>hm"}.items():
        assert VOICES[name].read(text) == "<think>\nhm"  # truncated
    for voice in VOICES.values():
        assert voice.read(f"{voice.opening}42<|end|>") == "42"
    for name in ("plain", "empty section", "channel", "reasoning in the text"):
        assert VOICES[name].read("42<|end|>") == "42"  # not in the template's format


def test_a_plain_template_has_nothing_around_its_answers() -> None:
    voice = build_template(build_tokenizer()).voice
    assert (voice.opening, voice.before, voice.after) == ("", "<think>\n", "\n</think>\n\n")
