"""Methods that train the base's own weights: nothing is left out, ties stay ties, LayerNorm tuning is that of peft."""

from __future__ import annotations

import json
from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import lamina
from lamina.compute.weights import count_weights
from lamina.config.methods.bitfit import BitfitConfig
from lamina.config.methods.full import FullConfig
from lamina.config.methods.ln_tuning import LnTuningConfig
from lamina.errors import AdapterError, ConfigError
from lamina.export.fold import fold_in
from lamina.methods.ln_tuning import METHOD
from lamina.methods.shared.base import Injection, inject
from lamina.methods.shared.trained_copy import count_replaced, train_parameters
from tests.support.models_zoo import build_model, build_tokenizer

IDS = torch.tensor([[5, 9, 17, 33, 4, 101, 7]])
FAMILIES = ["llama", "qwen3", "gemma2", "gemma3", "gpt2", "phi"]


def write_base(family: str, folder: Path) -> torch.nn.Module:
    base = build_model(family, vocab_size=259)
    base.save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
    base.config._name_or_path = base.name_or_path = str(folder)
    return base


@pytest.mark.parametrize("family", FAMILIES)
def test_full_trains_every_parameter_of_the_base(family: str) -> None:
    model = build_model(family)
    wanted = {f"base_model.model.{name}": tensor.clone() for name, tensor in model.named_parameters()}
    injection = inject(model, FullConfig(), seed=0)
    assert injection.tensors().keys() == wanted.keys()
    for name, tensor in injection.tensors().items():
        torch.testing.assert_close(tensor.detach(), wanted[name], rtol=0, atol=0)


def test_full_is_transformers_own_training() -> None:
    """Same gradients, and the same weights after ten steps, as of the bare model with its parameters unfrozen."""
    theirs, injection = build_model("llama").requires_grad_(True), inject(build_model("llama"), FullConfig(), seed=0)
    plain = dict(theirs.named_parameters())
    ours = {name.removeprefix("base_model.model."): tensor for name, tensor in injection.tensors().items()}
    optimizers = [torch.optim.AdamW(tensors.values(), lr=1e-3) for tensors in (plain, ours)]
    for step in range(10):
        for model, optimizer in zip((theirs, injection.model), optimizers, strict=True):
            optimizer.zero_grad()
            model(input_ids=IDS, labels=IDS).loss.backward()
        if step == 0:
            for name, tensor in ours.items():
                torch.testing.assert_close(tensor.grad, plain[name].grad, rtol=1e-5, atol=1e-6)
        for optimizer in optimizers:
            optimizer.step()
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, plain[name], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("family", "tied"), [("llama", True), ("gpt2", True), ("qwen2", False)])
def test_a_merged_full_model_is_tied_as_the_base_was(family: str, tied: bool, tmp_path: Path) -> None:
    write_base(family, tmp_path / "base")
    rows = [{"prompt": f"say {word}", "completion": word * 2} for word in ("a", "bc", "d", "ef")]
    data = tmp_path / "train.jsonl"
    data.write_text("\n".join(json.dumps(row) for row in rows))
    run = lamina.train(
        {
            "model": str(tmp_path / "base"),
            "data": {"train": str(data), "eval": None, "max_length": 128},
            "method": {"type": "full"},
            "train": {"max_steps": 4, "learning_rate": 0.01},
            "dtype": "float32",
            "output_dir": str(tmp_path / "run"),
        }
    )
    merged = lamina.merge(run.path, tmp_path / "merged")
    assert merged.certificate.passed
    stored, before = load_file(merged.path / "model.safetensors"), load_file(tmp_path / "base" / "model.safetensors")
    assert stored.keys() == before.keys()
    assert all(not torch.equal(stored[name], before[name]) for name in stored)
    written = AutoModelForCausalLM.from_pretrained(merged.path, dtype=torch.float32)
    assert written.config.tie_word_embeddings == tied
    assert (written.get_output_embeddings().weight is written.get_input_embeddings().weight) == tied


def test_folding_an_embedding_alone_leaves_the_tied_head_as_it_was() -> None:
    model = build_model("llama")
    head = model.get_output_embeddings().weight.clone()
    layers = train_parameters(model, {"model.embed_tokens": ["weight"]})
    injection = Injection(model, FullConfig(), layers)
    with torch.no_grad():
        for tensor in injection.tensors().values():
            tensor += 1.0
        expected = model(input_ids=IDS).logits
        fold_in(injection)
        torch.testing.assert_close(model(input_ids=IDS).logits, expected)
    assert not model.config.tie_word_embeddings
    torch.testing.assert_close(model.get_output_embeddings().weight, head)


def test_bitfit_trains_all_biases_and_nothing_else() -> None:
    model = build_model("gpt2")
    wanted = {f"base_model.model.{name}" for name, _ in model.named_parameters() if name.endswith(".bias")}
    assert inject(model, BitfitConfig(), seed=0).tensors().keys() == wanted
    qwen = inject(build_model("qwen2"), BitfitConfig(), seed=0).tensors()
    assert {name.split(".")[-2] for name in qwen} == {"q_proj", "k_proj", "v_proj"}


def test_bitfit_says_why_where_there_are_no_biases() -> None:
    with pytest.raises(ConfigError, match="BitFit trains the biases of a model, and LlamaForCausalLM has none"):
        inject(build_model("llama"), BitfitConfig(), seed=0)


def test_a_quantized_weight_is_not_trained() -> None:
    model = build_model("llama")
    model.lm_head.weight = torch.nn.Parameter(torch.zeros(160, 48, dtype=torch.uint8), requires_grad=False)
    with pytest.raises(ConfigError, match=r"lm_head.weight is stored quantized \(torch.uint8\)"):
        inject(model, FullConfig(), seed=0)


def peft_model(family: str, folder: Path, **settings: object) -> peft.PeftModel:
    config = peft.LNTuningConfig(task_type="CAUSAL_LM", **settings)  # pyright: ignore[reportArgumentType]
    return peft.get_peft_model(write_base(family, folder / "base"), config)  # pyright: ignore[reportArgumentType]


def trained_of(model: peft.PeftModel) -> dict[str, torch.nn.Parameter]:
    return {name.replace(".default", ""): p for name, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2", "phi"])
def test_ln_tuning_is_that_of_peft(family: str, tmp_path: Path) -> None:
    """Same tensors, forward, gradients, and the same tensors after ten steps."""
    theirs = peft_model(family, tmp_path)
    targets = sorted(theirs.peft_config["default"].target_modules)
    injection = inject(build_model(family, vocab_size=259), LnTuningConfig(target_modules=targets), seed=0)
    plain, ours = trained_of(theirs), injection.tensors()
    assert plain.keys() == ours.keys()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, tensor in ours.items():
            tensor += 0.1 * torch.randn(tensor.shape, generator=generator)
            plain[name].copy_(tensor)
    optimizers = [torch.optim.AdamW(tensors.values(), lr=1e-2) for tensors in (plain, ours)]
    for step in range(10):
        losses = []
        for model, optimizer in zip((theirs, injection.model), optimizers, strict=True):
            optimizer.zero_grad()
            losses.append(model(input_ids=IDS, labels=IDS).loss)
            losses[-1].backward()
        if step == 0:
            torch.testing.assert_close(losses[1], losses[0], rtol=1e-5, atol=0)
            for name, tensor in ours.items():
                torch.testing.assert_close(tensor.grad, plain[name].grad, rtol=1e-5, atol=1e-6, msg=name)
        for optimizer in optimizers:
            optimizer.step()
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, plain[name], rtol=1e-5, atol=1e-5, msg=name)


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("llama", {}),
        ("gemma2", {}),
        ("gpt2", {"target_modules": ["ln_1", "ln_f"]}),
        ("llama", {"target_modules": r".*norm"}),
    ],
)
def test_adapters_of_peft_load_with_its_logits(family: str, settings: dict[str, object], tmp_path: Path) -> None:
    model = peft_model(family, tmp_path, **settings)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor in trained_of(model).values():
            tensor += 0.1 * torch.randn(tensor.shape, generator=generator)
        expected = model.eval()(input_ids=IDS).logits
    model.save_pretrained(str(tmp_path / "adapter"))
    loaded = lamina.load(tmp_path / "adapter", dtype="float32")
    with torch.no_grad():
        torch.testing.assert_close(loaded.model(input_ids=IDS).logits, expected, rtol=1e-4, atol=1e-4)


def test_all_norms_are_tuned_unless_some_are_named() -> None:
    layers = inject(build_model("qwen3"), LnTuningConfig(), seed=0).layers
    kinds = {name.rpartition(".")[2] for name in layers}
    assert kinds == {"input_layernorm", "post_attention_layernorm", "q_norm", "k_norm", "norm"}
    named = inject(build_model("qwen3"), LnTuningConfig(target_modules=["q_norm"]), seed=0).layers
    assert list(named) == [f"model.layers.{i}.self_attn.q_norm" for i in (0, 1)]


def test_ln_tuning_targets_must_be_norms() -> None:
    with pytest.raises(ConfigError, match=r"'q_proj' matches .*q_proj, a Linear, which is not a norm layer"):
        inject(build_model("llama"), LnTuningConfig(target_modules=["q_proj"]), seed=0)
    with pytest.raises(ConfigError, match=r"its norm layers are input_layernorm, norm, post.*Did you mean 'norm'"):
        inject(build_model("llama"), LnTuningConfig(target_modules=["norms"]), seed=0)


@pytest.mark.parametrize("settings", [{"modules_to_save": ["lm_head"]}, {"exclude_modules": ["norm"]}])
def test_settings_of_peft_that_would_change_the_result_are_refused(settings: dict[str, object]) -> None:
    config = {"peft_type": "LN_TUNING", "task_type": "CAUSAL_LM", "target_modules": ["norm"], **settings}
    with pytest.raises(AdapterError, match=f"does not have: {next(iter(settings))}"):
        METHOD.from_peft(config)


def test_what_a_copy_stands_in_for_counts_once() -> None:
    model = build_model("llama")
    before = count_weights(model)
    assert count_replaced(model) == 0
    names = {name: [key for key, _ in module.named_parameters(recurse=False)] for name, module in model.named_modules()}
    train_parameters(model, {name: keys for name, keys in names.items() if keys})
    assert count_replaced(model) == before
    assert count_weights(model) - count_replaced(model) == before
