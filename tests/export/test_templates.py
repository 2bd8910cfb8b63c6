"""For every chat format that the tests know: a written folder asks as training did, and names what ends an answer."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from lamina.chat.jinja import mentions_date
from lamina.chat.message import Message
from lamina.chat.template import ChatTemplate, build_template
from lamina.chat.tokenizer import fingerprint_tokenizer
from lamina.models.folder import Ends, complete_folder
from tests.support.chat_families import BUILTINS, FIXTURES, family_tokenizer
from tests.support.reasoning_families import FAMILIES as REASONING
from tests.support.reasoning_families import reasoning_tokenizer

TURNS = [Message("user", "What is 6 times 7?"), Message("assistant", "42"), Message("user", "Sure?")]
CASES = [
    *(("model", name, None) for name in FIXTURES),
    *(("built-in", name, None) for name in BUILTINS),
    *(("reasoning", name, thinking) for name in REASONING for thinking in (None, False, True)),
]


def template_for(kind: str, name: str, thinking: bool | None) -> ChatTemplate:
    tokenizer = reasoning_tokenizer(name) if kind == "reasoning" else family_tokenizer(name, kind == "model")
    if thinking is not None and REASONING[name].closed is None:
        pytest.skip("its template has no switch for reasoning")
    return build_template(tokenizer, name if kind == "built-in" else None, enable_thinking=thinking)


@pytest.mark.parametrize(("kind", "name", "thinking"), CASES)
def test_a_folder_asks_and_stops_as_in_training(kind: str, name: str, thinking: bool | None, tmp_path: Path) -> None:
    template = template_for(kind, name, thinking)
    base, folder = tmp_path / "base", tmp_path / "written"
    base.mkdir()
    folder.mkdir()
    template.tokenizer.save_pretrained(base)
    (base / "config.json").write_text(json.dumps({"model_type": "llama", "eos_token_id": 0}))
    complete_folder(folder, base, Ends(0, None), template, {}, own_template=True, own_stop=True)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert fingerprint_tokenizer(tokenizer) == template.tokenizer_digest
    if not mentions_date(template.source):
        for turns in (TURNS[:1], TURNS):
            ours = [{"role": turn.role, "content": turn.content} for turn in turns]
            asked = tokenizer.apply_chat_template(ours, add_generation_prompt=True, return_dict=False)
            text = template.render(turns, add_generation_prompt=True)
            assert asked == template.tokenizer(text, add_special_tokens=False).input_ids
    for file in ("config.json", "generation_config.json"):
        found = json.loads((folder / file).read_text())["eos_token_id"]
        assert set(found if isinstance(found, list) else [found]) == {0, *template.stop_token_ids}
    writes_eos = "eos_token" in template.source + template.tool_source
    assert tokenizer.eos_token == (template.tokenizer.eos_token if writes_eos else template.stop_token)
