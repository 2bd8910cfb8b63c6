"""Prompts: pieces of the quickstart's requests, and those of a file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerBase

from lamina.bench.serving.prompts import LONGEST, SHORTEST, built_in_prompts, read_prompts
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
    one, same, again, two = read_prompts(path, template, 10_000)
    assert one == same == again != two
    assert template.tokenizer.decode(one).startswith("<|im_start|>user\none")


@pytest.mark.parametrize("line", ["{", '{"text": "a"}', "3", '{"messages": ["a"]}'])
def test_a_line_that_is_no_prompt(line: str, template: ChatTemplate, tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text(f'"fine"\n{line}\n')
    with pytest.raises(DataError, match=r"prompts\.jsonl, line 2: is no prompt"):
        read_prompts(path, template, 100)


def test_a_file_without_prompts(template: ChatTemplate, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        read_prompts(tmp_path / "no.jsonl", template, 100)
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(DataError, match="has no prompts"):
        read_prompts(tmp_path / "empty.jsonl", template, 100)
    (tmp_path / "latin.jsonl").write_bytes(b'"\xff"')
    with pytest.raises(DataError, match="UTF-8"):
        read_prompts(tmp_path / "latin.jsonl", template, 100)
