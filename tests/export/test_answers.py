"""A merged folder is asked in plain transformers: it answers as the adapter does, and stops where the adapter stops."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import lamina
from lamina.adapters.logits import model_logits
from lamina.engine.generate import build_generator, generate
from lamina.engine.generator import Piece, Request
from lamina.engine.local import LocalGenerator
from lamina.errors import CertificateError
from lamina.export import answers, merge
from lamina.models import folder as folders
from tests.support.hub_bases import write_base

WORDS = ["red", "blue", "green", "black", "white", "gold"]
PROMPT, ANSWER = "say green", "word green it is"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> lamina.Run:
    """An adapter that stops, on a base whose own EOS is not the token that its template ends a turn with."""
    path = tmp_path_factory.mktemp("stops")
    base = write_base(path / "base", generation={"eos_token_id": 0, "repetition_penalty": 1.0})
    rows = [{"prompt": f"say {word}", "completion": f"word {word} it is"} for word in WORDS]
    (path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    config = {
        "model": str(base),
        "data": {"train": str(path / "rows.jsonl"), "eval": None, "max_length": 128},
        "dtype": "float32",
        "train": {"max_steps": 100, "learning_rate": 1e-2},
        "output_dir": str(path / "run"),
    }
    return lamina.train(config)


@pytest.fixture
def prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The certificate's prompts are such as the adapter was trained on."""
    given = answers.answer_prompts
    monkeypatch.setattr(merge, "answer_prompts", lambda asked, _, longest: given(asked, [PROMPT, "say red"], longest))


def plain(folder: Path, tokens: int = 80) -> str:
    """What transformers alone says to `PROMPT`, special tokens included."""
    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    turns = [{"role": "user", "content": PROMPT}]
    ids = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    output = model.generate(**ids, max_new_tokens=tokens, do_sample=False)[0, ids["input_ids"].shape[1] :]
    return tokenizer.decode(output)


def test_it_stops_where_the_adapter_stops(run: lamina.Run, prompts: None, tmp_path: Path) -> None:
    assert generate(run.path, [PROMPT]) == [ANSWER]
    merged = lamina.merge(run.path, tmp_path / "merged")
    assert plain(merged.path) == f"{ANSWER}<|im_end|>"
    seen = merged.certificate.answers
    assert seen is not None
    assert (seen.prompts, seen.stopped, seen.undecided, seen.differences) == (2, 2, 0, 0)
    assert "2 of 2 answers ended" in merged.certificate.line()


def without_stop(content: Any) -> Any:
    return {**content, "eos_token_id": 0} if "eos_token_id" in content else content


def with_early_stop(content: Any) -> Any:
    return {**content, "eos_token_id": [0, 2, ord("g") - ord("!") + 3]} if "eos_token_id" in content else content


def with_other_template(content: Any) -> Any:
    return {**content, "chat_template": "{{ messages[0]['content'] }}"} if "chat_template" in content else content


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (without_stop, "continues after <|im_end|>"),
        (with_early_stop, "stops at"),
        (with_other_template, "its chat template renders different prompts"),
    ],
)
def test_a_folder_that_does_otherwise_is_refused(
    run: lamina.Run,
    prompts: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[Any], Any],
    reason: str,
) -> None:
    write = folders._write

    def wrong(path: Path, content: dict[str, Any]) -> None:
        write(path, content)
        path.write_text(json.dumps(change(content)))

    monkeypatch.setattr(folders, "_write", wrong)
    with pytest.raises(CertificateError, match=reason) as caught:
        lamina.merge(run.path, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()
    assert "--allow-difference" in str(caught.value)
    merged = lamina.merge(run.path, tmp_path / "merged", allow_difference=True)  # the way that the error names
    assert not merged.certificate.passed
    assert merged.certificate.answers is not None
    assert merged.certificate.answers.differences > 0


def test_a_stop_that_no_answer_reaches_is_asked_for(
    run: lamina.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With answers of one token nothing stops by itself, and still a folder that would go on is found."""
    monkeypatch.setattr(answers, "_LONGEST", 1)
    seen = lamina.merge(run.path, tmp_path / "merged").certificate.answers
    assert seen is not None
    assert (seen.longest, seen.stopped) == (1, 0)
    write = folders._write
    monkeypatch.setattr(folders, "_write", lambda path, content: write(path, without_stop(content)))
    with pytest.raises(CertificateError, match=r"continues after <\|im_end\|>, which ends an answer"):
        lamina.merge(run.path, tmp_path / "other")


def test_where_rounding_decides_answers_may_go_apart(
    run: lamina.Run, prompts: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tokens of the adapter's answer are not clear then; where they are, another answer is a difference."""

    class Other(LocalGenerator):
        def generate(self, requests: Sequence[Request], *more: Any) -> list[Piece]:
            said = super().generate(requests, *more)
            first = said[0]
            if not self.adapters and not requests[0].sampling.logit_bias:
                ids = (first.token_ids[0], first.token_ids[1] + 1, *first.token_ids[2:])
                said[0] = replace(first, token_ids=ids)
            return said

    monkeypatch.setattr(merge, "LocalGenerator", Other)
    monkeypatch.setattr(answers, "_gap", lambda *asked: gap)
    gap = 1e-6
    seen = lamina.merge(run.path, tmp_path / "merged").certificate.answers
    assert seen is not None
    assert (seen.stopped, seen.undecided) == (1, 1)
    gap = 1.0
    with pytest.raises(CertificateError, match=f"it answers '{PROMPT}' differently, by a logit of 1"):
        lamina.merge(run.path, tmp_path / "other")


def test_a_large_model_is_asked_for_fewer_tokens(run: lamina.Run, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = lamina.load(run.path)
    size = sum(parameter.nbytes for parameter in loaded.model.parameters())
    for budget, longest in ((1e12, 48), (10 * size, 10), (1, 4)):
        monkeypatch.setattr(answers, "_BYTES_TO_READ", budget)
        assert answers.longest_answer(loaded.model) == longest
        found = answers.answer_prompts(build_generator(loaded), [PROMPT], longest)
        assert len(found.answers[0].token_ids) <= longest


def test_the_adapter_itself_ends_as_the_base_does_too(run: lamina.Run) -> None:
    loaded = lamina.load(run.path)
    config: Any = loaded.model.generation_config
    first = loaded.tokenizer.convert_tokens_to_ids("w")
    config.eos_token_id = [0, first]
    assert generate(loaded, [PROMPT]) == [""]
    assert answers.answer_prompts(build_generator(loaded), [PROMPT], 48).answers == [Piece("", (first,), "stop")]
    torch.testing.assert_close(torch.tensor(config.eos_token_id), torch.tensor([0, first]))


def test_the_gap_is_what_the_best_token_has_more(run: lamina.Run) -> None:
    loaded = lamina.load(run.path)
    ids = [5, 9, 17]
    with torch.no_grad():
        scores = loaded.model(input_ids=torch.tensor([ids])).logits[0, -1].float()
    logits = model_logits(loaded.model)
    assert answers._gap(logits, ids, int(scores.argmax())) == 0.0
    assert answers._gap(logits, ids, 7) == pytest.approx(float(scores.max() - scores[7]))
