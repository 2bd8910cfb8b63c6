"""What training saw: the rows of a run, what it replayed, and what the adapter that it started from was trained on."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

import lamina
from lamina.adapters.adapter import read_adapter
from lamina.chat.template import ChatTemplate
from lamina.evaluation.leakage import Trained, prompt_of, trained_rows
from lamina.runs import Run
from tests.support.evaluation import write_jsonl
from tests.support.preferences import preference_settings
from tests.support.training import settings

SHORT: dict[str, Any] = {"max_steps": 2, "eval_steps": 2, "save_steps": 2}


@pytest.fixture
def runs(tmp_path: Path, model_folder: Path) -> tuple[Run, Run]:
    """A fine-tune that replays, and preferences that start from it."""
    replayed = [{"prompt": f"replayed {number}", "completion": "yes"} for number in range(10)]
    replay = {"path": str(write_jsonl(tmp_path / "replay.jsonl", replayed)), "share": 0.3}
    first = lamina.train(settings(tmp_path, model_folder, "first", data={"replay": replay}, train=SHORT))
    values = preference_settings(tmp_path, model_folder, {"type": "dpo"}, "second", train=SHORT)
    values["method"] = {"from": str(first.path)}
    return first, lamina.train(values)


def seen(run: Run) -> Trained:
    return trained_rows(read_adapter(run.adapter), template_of(run))


def template_of(run: Run) -> ChatTemplate:
    return lamina.load(run.path).template


def test_rows_that_were_replayed_were_seen(runs: tuple[Run, Run]) -> None:
    found = seen(runs[0])
    prompts = {prompt_of(example) for example in found.examples}
    assert {f"replayed {number}" for number in range(10)} <= prompts
    assert not found.unknown


def test_rows_of_the_adapter_that_a_run_started_from_were_seen(runs: tuple[Run, Run]) -> None:
    first, second = (seen(run) for run in runs)
    prompts = {prompt_of(example) for example in second.examples}
    assert {prompt_of(example) for example in first.examples} <= prompts
    assert any(prompt.startswith("replayed") for prompt in prompts), "which the second run itself has not"
    assert len(second.examples) > len(first.examples)
    assert not second.unknown


def test_a_start_that_is_gone_or_another_one_leaves_it_unknown(runs: tuple[Run, Run], tmp_path: Path) -> None:
    first, second = runs
    shutil.move(first.path, tmp_path / "elsewhere")
    assert "started from" in seen(second).unknown
    shutil.copytree(second.path, first.path)
    assert "another adapter now" in seen(second).unknown
