"""Full fine-tuning of some parameters alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import lamina
from lamina.config.methods.full import FullConfig
from lamina.errors import ConfigError
from lamina.methods.shared.base import inject
from tests.support.models_zoo import build_model
from tests.support.training import settings

SOME = ["model.layers.1.mlp", r"model[.]norm"]


def test_only_matching_parameters_are_trained() -> None:
    model = build_model("llama")
    every = {name for name, _ in model.named_parameters()}
    wanted = {name for name in every if name.startswith(("model.layers.1.mlp", "model.norm"))}
    injection = inject(model, FullConfig(parameters=SOME), 0)
    assert {name.removeprefix("base_model.model.") for name in injection.tensors()} == wanted
    assert wanted and wanted != every


def test_all_without_a_pattern() -> None:
    assert len(inject(build_model("llama"), FullConfig(), 0).tensors()) > len(SOME) * 5


@pytest.mark.parametrize(("patterns", "words"), [(["nothing"], "no parameter matches"), (["("], "not a regular")])
def test_patterns_that_select_nothing_are_refused(patterns: list[str], words: str) -> None:
    with pytest.raises((ConfigError, ValueError), match=words):
        inject(build_model("llama"), FullConfig(parameters=patterns), 0)


def test_the_adapter_is_saved_and_loaded(model_folder: Path, tmp_path: Path) -> None:
    changes = {"method": {"type": "full", "parameters": SOME, "r": None}, "train": {"max_steps": 2, "eval_steps": 1}}
    values = settings(tmp_path, model_folder, **changes)
    values["method"] = {"type": "full", "parameters": SOME}
    run = lamina.train(values)
    loaded = lamina.load(run.path)
    assert isinstance(loaded.adapter.config, FullConfig) and loaded.adapter.config.parameters == SOME
    assert loaded.certify().passed
    assert not any("layers.0" in name for name in loaded.adapter.tensors)
    frozen = loaded.model.get_parameter("model.embed_tokens.weight")
    assert torch.equal(frozen, build_base(model_folder).get_parameter("model.embed_tokens.weight"))


def build_base(folder: Path) -> torch.nn.Module:
    """The base as it is on disk."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
