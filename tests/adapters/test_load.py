"""Several adapters on one base in memory, and what an adapter has of parameters."""

from __future__ import annotations

from pathlib import Path

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM

import lamina
from lamina.adapters.load import Loaded
from lamina.errors import AdapterError
from tests.support.peft_pairs import FAMILIES, base_folder, build, check_close, logits, peft_logits, train_with_peft

CONFIGS = {
    "lora": peft.LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj", "down_proj"]),
    "whole": peft.LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj"], modules_to_save=["lm_head"]),
    "bias": peft.LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj"], lora_bias=True),
    "prompt": peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
    "norms": peft.LNTuningConfig(task_type="CAUSAL_LM"),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapters")
    for name, config in CONFIGS.items():
        train_with_peft(build("llama"), config, folder / name)
    base_folder("llama", folder)
    return folder


def load(folders: Path, name: str) -> Loaded:
    return lamina.load(folders / name, model=str(folders / "llama"), dtype="float32")


@pytest.mark.parametrize("first", CONFIGS)
def test_adapters_beside_each_other_share_the_base(first: str, folders: Path) -> None:
    wanted = {name: peft_logits(build("llama"), folders / name) for name in CONFIGS}
    held = {first: load(folders, first)}
    for name in CONFIGS:
        if name != first:
            held[name] = held[first].load_beside(folders / name)
    for name in [*CONFIGS, *reversed(CONFIGS)]:  # whichever was called before
        check_close(logits(held[name].model), wanted[name])
    weights = {loaded.model.get_input_embeddings().weight.data_ptr() for loaded in held.values()}
    assert len(weights) == 1


def test_another_bases_adapter_is_refused_beside(folders: Path, tmp_path: Path) -> None:
    other = peft.LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=[FAMILIES["gpt2"].linear])
    train_with_peft(build("gpt2"), other, tmp_path / "other")
    loaded = load(folders, "lora")
    before = logits(loaded.model)
    with pytest.raises(AdapterError, match="does not fit"):
        loaded.load_beside(tmp_path / "other")
    assert torch.equal(logits(loaded.model), before)


@pytest.mark.parametrize("name", CONFIGS)
def test_parameters_are_counted_as_peft_counts_them(name: str, folders: Path) -> None:
    counts = load(folders, name).parameter_counts()
    theirs, everything = peft.get_peft_model(build("llama"), CONFIGS[name]).get_nb_trainable_parameters()
    assert counts.trained == theirs
    # peft counts the base's own modules beside their trained copies.
    assert counts.total == everything - (theirs if name == "norms" else 0) - (259 * 48 if name == "whole" else 0)
    assert f"{theirs:,}" in str(counts)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_model_is_merged_in_memory(dtype: str, folders: Path) -> None:
    for name in ("lora", "whole", "norms"):
        loaded = lamina.load(folders / name, model=str(folders / "llama"), dtype=dtype)
        before = logits(loaded.model)
        merged = lamina.merge_and_unload(loaded)
        plain = AutoModelForCausalLM.from_config(merged.config, dtype=merged.dtype)
        assert merged.state_dict().keys() == plain.state_dict().keys()
        torch.testing.assert_close(logits(merged), before, rtol=0, atol=1e-5 if dtype == "float32" else 0.03)
    with pytest.raises(AdapterError, match="cannot be merged"):
        lamina.merge_and_unload(folders / "prompt", model=str(folders / "llama"), dtype=dtype)
