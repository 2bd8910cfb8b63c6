"""A chat template that the configuration gives as text."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerBase

import lamina
from lamina.chat.template import build_template
from lamina.chat.template_source import INLINE, find_source
from lamina.errors import ConfigError
from tests.support.training import settings

TEXT = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + ': ' + message['content'] + '<|im_end|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant: ' }}{% endif %}"
)


def test_a_text_is_the_template(tokenizer: PreTrainedTokenizerBase) -> None:
    source = find_source(tokenizer, TEXT)
    assert (source.name, source.text) == (INLINE, TEXT)
    assert build_template(tokenizer, TEXT).source == TEXT
    assert build_template(tokenizer, INLINE, "keep", TEXT).source == TEXT  # as an adapter's lock names it


def test_a_text_that_is_no_template_is_refused(tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(ConfigError, match="inline chat template is not valid Jinja"):
        find_source(tokenizer, "{% for message in messages %}")


def test_an_adapter_keeps_it(model_folder: Path, tmp_path: Path) -> None:
    changes = {"data": {"chat_template": TEXT}, "train": {"max_steps": 1, "eval_steps": 1}}
    run = lamina.train(settings(tmp_path, model_folder, **changes))
    assert lamina.load(run.path).template.source == TEXT
    assert run.config.data.chat_template == TEXT
