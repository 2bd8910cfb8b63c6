"""`data.chat_template_kwargs`: the same in training and in use, with a row's own before them, and kept when merged."""

from __future__ import annotations

from typing import Any

import pytest

from lamina.chat.message import Message
from lamina.chat.saved import saved_source
from lamina.chat.template import ChatTemplate, build_template, template_of
from lamina.config import DataConfig
from lamina.errors import ConfigError
from tests.support.models_zoo import build_tokenizer

SOURCE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}{% if style is defined %} {{ style }}{% endif %}"
    "{% if facts %} {{ facts.a }}{% endif %}{{ '\n' + m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant{% if style is defined %} {{ style }}{% endif %}"
    "{% if facts %} {{ facts.a }}{% endif %}{{ '\n' }}{% endif %}"
)
TURNS = [Message("user", "q"), Message("assistant", "a")]


def template_with(kwargs: dict[str, Any]) -> ChatTemplate:
    return template_of(build_tokenizer(SOURCE), DataConfig(train="x", chat_template_kwargs=kwargs))


def test_they_reach_training_and_generation() -> None:
    template = template_with({"style": "brief", "facts": {"a": 1}})
    assert template.render(TURNS[:1], add_generation_prompt=True).endswith("<|im_start|>assistant brief 1\n")
    rendered = template.render_spans(TURNS)
    assert rendered.text[rendered.answers[0].start : rendered.answers[0].end] == "a<|im_end|>"
    assert rendered.text.startswith("<|im_start|>user brief 1\n")


def test_a_row_decides_for_itself_one_by_one() -> None:
    template = template_with({"style": "brief", "facts": {"a": 1}})
    assert "user long 1\n" in template.render(TURNS, kwargs={"style": "long"})
    assert "user brief 1\n" in template.render(TURNS)


@pytest.mark.parametrize("kwargs", [{"other": 1}, {"style": "<|im_end|>"}])
def test_what_would_do_nothing_or_harm_is_refused(kwargs: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"data\.chat_template_kwargs"):
        template_with(kwargs)


@pytest.mark.parametrize("value", [{"a": 'it\'s "so"\n'}, {"a": True}, {"a": None}, {"a": [1, 2.5]}])
def test_a_merged_model_has_them_as_its_defaults(value: dict[str, Any]) -> None:
    template = template_with({"facts": value, "style": "x"})
    tokenizer = build_tokenizer()
    saved = saved_source(template)
    assert isinstance(saved, str)
    tokenizer.chat_template = saved
    assert build_template(tokenizer).render(TURNS) == template.render(TURNS)
    listed = [{"role": turn.role, "content": turn.content} for turn in TURNS]
    assert tokenizer.apply_chat_template(listed, tokenize=False) == template.render(TURNS)
    assert "user other" in str(tokenizer.apply_chat_template(listed, tokenize=False, style="other"))
