"""Prompts: pieces of the quickstart's requests, and those of a file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerBase

from lamina.bench.serving.prompts import LONGEST, SHORTEST, built_in_prompts, rendered_prompts
from lamina.chat.template import ChatTemplate, build_template
from lamina.errors import DataError


@pytest.fixture
def template(tokenizer: PreTrainedTokenizerBase) -> ChatTemplate:
    return build_template(tokenizer)


def test_built_in_prompts_are_of_a_length_and_have_no_common_beginning(template: ChatTemplate) -> None:
    prompts = built_in_prompts(template, 200, 200, seed=1)
    assert len(prompts) == 200
    assert {len(prompt) for prompt in prompts} <= set(range(SHORTEST, LONGEST + 1))
    assert len({tuple(prompt[:16]) for prompt in prompts}) > 190
    assert max(max(prompt) for prompt in prompts) < 200
    assert prompts == built_in_prompts(template, 200, 200, seed=1) != built_in_prompts(template, 200, 200, seed=2)


def test_more_prompts_than_the_requests_of_one_seed_fill(template: ChatTemplate) -> None:
    assert len(built_in_prompts(template, 2000, 300, seed=0)) == 2000


def test_prompts_of_a_file(template: ChatTemplate, tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    rows = ["one", {"prompt": "one"}, {"messages": [{"role": "user", "content": "one"}]}, {"prompt": "two"}]
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n\n")
    one, same, again, two = rendered_prompts(path, template, 10_000)
    assert one == same == again != two
    assert "user\none" in str(template.tokenizer.decode(one))


def test_a_file_that_cannot_be_asked(template: ChatTemplate, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        rendered_prompts(tmp_path / "no.jsonl", template, 100)
    (tmp_path / "rows.jsonl").write_text('"fine"\n{"text": "a"}\n')
    with pytest.raises(DataError, match="line 2 has neither"):
        rendered_prompts(tmp_path / "rows.jsonl", template, 100)
