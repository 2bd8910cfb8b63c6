"""One contract, every method: each test runs over all methods that discovery finds, and over three model shapes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch

import lamina
from lamina.adapters.adapter import adapter_digest, check_tensors, read_adapter, save_adapter
from lamina.adapters.lock import build_lock
from lamina.chat.template import build_template
from lamina.compute.fusion import fast_path
from lamina.config import METHOD_CONFIGS, MethodConfig
from lamina.data.batch import build_batch
from lamina.errors import AdapterError
from lamina.export.fold import fold_in
from lamina.losses.cross_entropy import cross_entropy
from lamina.methods.shared.base import Injection, find_method, inject
from lamina.models.load import Base, load_base
from lamina.models.source import ModelSource
from lamina.runs.events import Event
from lamina.structure.head import find_head
from tests.support.documents import documents
from tests.support.models_zoo import build_model, build_tokenizer

SHAPES = ("llama", "gemma3", "gpt2")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
TOLERANCE = {"float32": 2e-5, "bfloat16": 6e-2}
IDS = torch.tensor([[5, 9, 17, 33, 4, 101, 7, 7, 60, 21]])


# For models of two layers, wherever a method has a field of that name.
SMALL = {"r": 4, "reduction_factor": 4.0}

# What a method needs beside that.
NEEDS: dict[str, dict[str, Any]] = {
    "peft": {"peft_type": "GRALORA", "r": 4, "alpha": 8, "gralora_k": 2, "target_modules": "all-linear"},
}

# How far the loss on a tiny batch falls, where a method has too few parameters to learn it by heart.
LEARNS_TO: dict[str, float] = {"ia3": 0.5, "p_tuning": 0.4, "prefix_tuning": 0.3, "prompt_tuning": 0.5}


@pytest.fixture(params=sorted(METHOD_CONFIGS))
def config(request: pytest.FixtureRequest) -> MethodConfig:
    cls = METHOD_CONFIGS[request.param]
    small = {name: value for name, value in SMALL.items() if name in cls.model_fields}
    return cls.model_validate({"type": request.param} | small | NEEDS.get(request.param, {}))


@pytest.fixture(params=SHAPES)
def shape(request: pytest.FixtureRequest, config: MethodConfig) -> str:
    if find_method(config.type).needs_biases and request.param != "gpt2":
        pytest.skip("the model has no biases")
    return request.param


def home(config: MethodConfig) -> str:
    """The shape for what is tested on one alone."""
    return "gpt2" if find_method(config.type).needs_biases else "llama"


def attached(shape: str, config: MethodConfig, dtype: str = "float32", disturb: bool = True) -> Injection:
    """An adapter that does something: its tensors are moved away from their initial values."""
    injection = inject(build_model(shape, DTYPES[dtype], vocab_size=259), config, seed=0)
    if disturb:
        generator = torch.Generator().manual_seed(3)
        with torch.no_grad():
            for tensor in injection.tensors().values():
                tensor += 0.1 * torch.randn(tensor.shape, generator=generator)
    return injection


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits.float()


def on_disk(shape: str, folder: Path) -> Base:
    build_model(shape, vocab_size=259).save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
    return load_base(str(folder), "float32")


def save(injection: Injection, base: Base, path: Path) -> str:
    return save_adapter(path, injection, base, build_lock(base, build_template(base.tokenizer), []), [])


@pytest.mark.parametrize("dtype", DTYPES)
def test_starts_as_the_base(shape: str, config: MethodConfig, dtype: str) -> None:
    if not find_method(config.type).starts_as_base:
        pytest.skip("the method begins elsewhere")
    expected = logits(build_model(shape, DTYPES[dtype], vocab_size=259))
    injection = attached(shape, config, dtype, disturb=False)
    torch.testing.assert_close(logits(injection.model), expected, rtol=0, atol=TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
def test_disabled_is_the_base_and_enabled_is_not(shape: str, config: MethodConfig, dtype: str) -> None:
    expected = logits(build_model(shape, DTYPES[dtype], vocab_size=259))
    injection = attached(shape, config, dtype)
    with injection.disabled():
        torch.testing.assert_close(logits(injection.model), expected, rtol=0, atol=0)
    assert (logits(injection.model) - expected).abs().max() > 0.05


def test_same_seed_same_adapter(shape: str, config: MethodConfig) -> None:
    first, second = (attached(shape, config, disturb=False) for _ in range(2))
    other = inject(build_model(shape, vocab_size=259), config, seed=1)
    assert adapter_digest({}, first.tensors()) == adapter_digest({}, second.tensors())
    differs = adapter_digest({}, first.tensors()) != adapter_digest({}, other.tensors())
    assert differs == find_method(config.type).draws


def test_master_tensors_are_float32(shape: str, config: MethodConfig) -> None:
    assert {t.dtype for t in attached(shape, config, "bfloat16").tensors().values()} == {torch.float32}


@pytest.mark.parametrize("dtype", DTYPES)
def test_merged_is_the_adapter(shape: str, config: MethodConfig, dtype: str) -> None:
    injection = attached(shape, config, dtype)
    if not all(layer.merges for layer in injection.layers.values()):
        with pytest.raises(AdapterError, match="cannot be merged into the base's weights"):
            fold_in(injection)
        return
    expected = logits(injection.model)
    assert fold_in(injection).modules == len(injection.layers)
    assert not any(type(m).__module__.startswith("lamina.") for m in injection.model.modules())
    scale = float(expected.abs().max())
    torch.testing.assert_close(logits(injection.model), expected, rtol=0, atol=TOLERANCE[dtype] * scale)


def test_save_and_load_are_exact(shape: str, config: MethodConfig, tmp_path: Path) -> None:
    base = on_disk(shape, tmp_path / "base")
    injection = attached(shape, config)
    digest = save(injection, base, tmp_path / "adapter")
    adapter = read_adapter(tmp_path / "adapter")
    assert adapter.digest == digest
    assert adapter.config == find_method(config.type).saved(injection).config
    fresh = inject(base.model, adapter.config, seed=9)
    check_tensors(adapter, fresh)
    fresh.load_tensors(adapter.tensors)
    torch.testing.assert_close(logits(fresh.model), logits(injection.model), rtol=0, atol=0)


def test_peft_loads_it_with_the_same_logits(shape: str, config: MethodConfig, tmp_path: Path) -> None:
    if not find_method(config.type).in_peft:
        pytest.skip("peft has no such method")
    if shape == "gpt2" and not find_method(config.type).peft_takes_conv1d:
        pytest.skip("peft has the method for nn.Linear alone")
    base = on_disk(shape, tmp_path / "base")
    injection = attached(shape, config)
    save(injection, base, tmp_path / "adapter")
    theirs = peft.PeftModel.from_pretrained(build_model(shape, vocab_size=259), tmp_path / "adapter")
    expected = logits(theirs.eval())[:, -IDS.shape[1] :]  # peft leaves virtual tokens in its output
    torch.testing.assert_close(expected, logits(injection.model), rtol=1e-4, atol=1e-4)


def test_overfits_a_tiny_batch(shape: str, config: MethodConfig) -> None:
    injection = attached(shape, config, disturb=False)
    optimizer = torch.optim.AdamW(injection.tensors().values(), lr=2e-2)
    losses = []
    for _ in range(150):
        loss = injection.model(input_ids=IDS, labels=IDS).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < LEARNS_TO.get(config.type, 0.1) * losses[0]


@pytest.mark.parametrize("recompute", [False, True])
def test_packed_is_one_at_a_time(shape: str, config: MethodConfig, recompute: bool) -> None:
    """The packed loss in the fast path, with its gradients, is transformers' own of each document."""
    packed, apart = attached(shape, config), attached(shape, config)
    packed.model.train()
    apart.model.train()
    with fast_path(packed.model, recompute):
        ours = cross_entropy(packed.model, find_head(packed.model), build_batch(documents()))
        ours.backward()
    losses = []
    for document in documents():
        ids = torch.from_numpy(document.input_ids.astype(np.int64))
        labels = torch.where(torch.from_numpy(document.supervised), ids, -100)
        losses.append(apart.model(input_ids=ids[None], labels=labels[None]).loss * document.supervised_tokens)
    theirs = torch.stack(losses).sum()
    theirs.backward()
    torch.testing.assert_close(ours.detach(), theirs.detach(), rtol=1e-4, atol=0)
    for (name, tensor), other in zip(packed.tensors().items(), apart.tensors().values(), strict=True):
        assert tensor.grad is not None and other.grad is not None, name
        scale = float(other.grad.abs().max())
        torch.testing.assert_close(tensor.grad, other.grad, rtol=1e-3, atol=1e-3 * scale, msg=name)


def test_gradients_reach_the_adapter_alone(shape: str, config: MethodConfig) -> None:
    injection = attached(shape, config)
    injection.model(input_ids=IDS, labels=IDS).loss.backward()
    trained = {id(tensor) for tensor in injection.tensors().values()}
    assert trained == {id(p) for p in injection.model.parameters() if p.requires_grad}
    assert all(p.grad is None for p in injection.model.parameters() if id(p) not in trained)


def test_a_cut_run_gives_the_same_adapter_and_it_proves_itself(config: MethodConfig, tmp_path: Path) -> None:
    base = on_disk(home(config), tmp_path / "base")
    rows = [{"prompt": f"say {word}", "completion": word * 3} for word in ("a", "bc", "d", "ef", "g", "hi")]
    (tmp_path / "train.jsonl").write_text("\n".join(json.dumps(row) for row in rows))

    def settings(run: str) -> dict[str, Any]:
        return {
            "model": str(base.source.folder),
            "data": {"train": str(tmp_path / "train.jsonl"), "eval": None, "max_length": 64, "packing": False},
            "method": config.model_dump(mode="json"),
            "train": {"max_steps": 6, "per_device_train_batch_size": 2, "save_steps": 1, "learning_rate": 0.02},
            "dtype": "float32",
            "output_dir": str(tmp_path / run),
        }

    whole = lamina.train(settings("whole"))

    def cut(event: Event) -> None:
        if event.kind == "checkpoint" and event.step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        lamina.train(settings("cut"), cut)
    resumed = lamina.train(settings("cut"), resume=True)
    assert resumed.summary is not None and whole.summary is not None
    assert resumed.summary.adapter_digest == whole.summary.adapter_digest
    loaded = lamina.load(resumed.path, dtype="float32")
    assert loaded.certify().passed, loaded.certify().reasons


def test_damaged_adapters_are_refused(config: MethodConfig, tmp_path: Path) -> None:
    base = on_disk(home(config), tmp_path / "base")
    injection = attached(home(config), config)
    path = tmp_path / "adapter"
    save(injection, base, path)

    about = json.loads((path / "lamina.json").read_text())
    about["digest"] = "sha256:0"
    (path / "lamina.json").write_text(json.dumps(about))
    with pytest.raises(AdapterError, match="were changed after training"):
        read_adapter(path)

    (path / "lamina.json").unlink()
    adapter = read_adapter(path)
    injection = inject(build_model(home(config), vocab_size=259), adapter.config, seed=0)
    name = next(iter(adapter.tensors))
    removed = adapter.tensors.pop(name)
    with pytest.raises(AdapterError, match=r"1 tensors are missing \(first: "):
        check_tensors(adapter, injection)
    adapter.tensors[name + ".typo"] = removed
    with pytest.raises(AdapterError, match="1 fit no module"):
        check_tensors(adapter, injection)
    del adapter.tensors[name + ".typo"]
    adapter.tensors[name] = removed.flatten()[:1]
    with pytest.raises(AdapterError, match="has the shape"):
        check_tensors(adapter, injection)

    (path / "adapter_model.safetensors").write_bytes(b"garbage")
    with pytest.raises(AdapterError, match="is damaged"):
        read_adapter(path)


def test_source_is_kept_in_the_base(tmp_path: Path) -> None:
    base = on_disk("llama", tmp_path / "base")
    assert base.source == ModelSource(str(tmp_path / "base"), tmp_path / "base")
